"""Where a server's processes let training in: hooks of SGLang's plugin framework, which do nothing until it is opened.

It is opened by `--zotune-jobs`, when the scheduler starts, or from Python (`zotune.attach`), by a call to every rank.
"""

import os
from pathlib import Path
from typing import Any

from zotune.engine.sglang.live.arrival import DEFAULT_SHARE, SHARE, SLOTS, SOCKET, Turn

_MODULES = "sglang.srt.managers."
_SCHEDULER = _MODULES + "scheduler:Scheduler."
STARTED = _SCHEDULER + "init_request_dispatcher"
PULL = _MODULES + "scheduler_components.request_receiver:SchedulerRequestReceiver._pull_raw_reqs"
PROCESS = _SCHEDULER + "process_input_requests"
IDLE = _SCHEDULER + "is_fully_idle"
STREAM = _MODULES + "scheduler_components.output_streamer:SchedulerOutputStreamer.stream_output"
NAMES = (STARTED, PULL, PROCESS, IDLE, STREAM)

_guest: Any = None  # a process has one scheduler


def register() -> None:
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(STARTED.replace(":", "."), _started, HookType.AFTER)
    for name, hook in ((PULL, _pull), (PROCESS, _process), (IDLE, _is_fully_idle), (STREAM, _stream)):
        HookRegistry.register(name.replace(":", "."), hook, HookType.AROUND)
    Scheduler.zotune_open, Scheduler.zotune_close = open_guest, close_guest


def open_guest(scheduler: Any, path: str, share: float = DEFAULT_SHARE, slots: int | None = None) -> None:
    """Let training in, through a socket at `path`; every rank is called."""
    from sglang.srt.runtime_context import get_parallel

    from zotune.engine.sglang.live.guest import Guest

    global _guest
    if _guest is None:
        _guest = Guest(scheduler, Path(path) if get_parallel().tp_rank == 0 else None, share, slots)


def close_guest(scheduler: Any) -> None:
    """Let nobody in any more."""
    global _guest
    if _guest is not None:
        _guest.close()
    _guest = None


def _started(result: Any, scheduler: Any, *args: Any, **kwargs: Any) -> Any:
    if path := os.environ.get(SOCKET):
        slots = os.environ.get(SLOTS)
        open_guest(scheduler, path, float(os.environ.get(SHARE, DEFAULT_SHARE)), int(slots) if slots else None)
    return result


def _pull(original: Any, receiver: Any) -> Any:
    received = original(receiver)
    if received is not None and _guest is not None and (turn := _guest.next_turn(received)) is not None:
        received.append(turn)
    return received


def _process(original: Any, scheduler: Any, received: list[Any]) -> Any:
    turns = [request for request in received if isinstance(request, Turn)]
    result = original(scheduler, [request for request in received if not isinstance(request, Turn)])
    for turn in turns:
        assert _guest is not None
        _guest.take(turn)
    return result


def _is_fully_idle(original: Any, scheduler: Any, for_health_check: bool = False, ignore_waiting: bool = False) -> Any:
    """A server that trains is not idle: its tree is not flushed, nor its memory counted, in the middle of a command."""
    if not for_health_check and _guest is not None and _guest.is_busy:
        return False
    return original(scheduler, for_health_check, ignore_waiting)


def _stream(original: Any, streamer: Any, requests: list[Any], *args: Any, **kwargs: Any) -> Any:
    """Nobody waits for what training's requests write."""
    if requests and getattr(requests[0], "is_training", False):
        return None
    return original(streamer, requests, *args, **kwargs)
