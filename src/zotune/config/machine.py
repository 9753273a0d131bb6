"""What this machine has: more of it than there is, is refused before anything is started.

A run may go on, or be used, on a smaller machine than it began on: only what a user asks for here is held to this.
"""

import os
from collections.abc import Mapping
from typing import Any

import psutil

from zotune.errors import InputError
from zotune.values import shown

THREADS_PER_PROCESSOR = 4  # more only take turns
MEASURED_S = 0.2


def check_machine(settings: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse those of the `given` settings that are more than this machine has.

    Raises:
        InputError: with what is allowed.
    """
    processors = os.cpu_count() or 1
    threads, most = settings.get("num_threads"), THREADS_PER_PROCESSOR * processors
    if "num_threads" in given and threads is not None and threads > most:
        raise InputError(
            f"--num-threads must be at most {most}, {THREADS_PER_PROCESSOR} for each of the {processors} processors "
            f"here, got {shown(threads)}"
        )
    memory = psutil.virtual_memory().total / 1e9
    kept = settings.get("kv_cache_gb")
    if "kv_cache_gb" in given and kept is not None and kept > memory:
        raise InputError(f"--kv-cache-gb must be at most {memory:.1f}, the memory of this machine, got {kept:g}")


def free_cores() -> tuple[int, int]:
    """How many of the cores that this process may use are idle now, but at least one; and how many it may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    idle = psutil.cpu_times_percent(interval=MEASURED_S).idle / 100 * (os.cpu_count() or 1)
    return max(1, min(cores, round(idle))), cores
