"""The most memory that this process has had in use: its resident set, and what a GPU held for it; and want of memory.

The system counts for a process as a whole, whatever it runs. Counts begin anew where the system can do that.
"""

import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch


def peak_resident_bytes() -> int:
    """The most memory that this process has had in use."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux: getrusage would count what a parent process held when it started this one
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it was raised for want of memory, by Python, NumPy, PyTorch or a library below."""
    words = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory")
    said = isinstance(error, RuntimeError | OSError) and any(word in str(error) for word in words)
    return said or isinstance(error, MemoryError | torch.OutOfMemoryError)


def reset_peak_memory() -> None:
    """Count `peak_memory_bytes` of engines in this process from here on, where the system can (Linux, CUDA)."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: resets VmHWM
