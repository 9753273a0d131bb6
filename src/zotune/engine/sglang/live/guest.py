"""Training as a guest of a server's scheduler: what each rank does between its users' batches.

The first rank decides when a pass of training comes, and its decision (`Turn`) goes to the other ranks with the
requests that SGLang sends them all. So every rank does the same at the same point of its loop, in its scheduler's own
thread.
"""

import functools
import logging
import os
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import GeneratorType
from typing import Any

import torch
import zmq

from zotune.engine.sglang.jobs import Passes, finished
from zotune.engine.sglang.live.arrival import Arrival, Turn
from zotune.engine.sglang.live.door import LEFT, Door
from zotune.engine.sglang.live.driver import LiveDriver
from zotune.engine.sglang.live.share import Share
from zotune.engine.sglang.rank_start import mapped_theta
from zotune.engine.sglang.worker import Worker
from zotune.errors import InputError

COMMANDS = (
    "score", "watched", "lens_gradient", "watch_inputs", "inputs_of", "start_from", "generate", "stats",
    "peak_memory_bytes",
)  # fmt: skip
logger = logging.getLogger("zotune")


class Guest:
    """Of one rank's scheduler.

    Args:
        path: of the socket, on the first rank; None on the others.
        num_slots: LoRA slots that training may take, at most.
    """

    def __init__(self, scheduler: Any, path: Path | None, share: float, num_slots: int | None) -> None:
        self.scheduler, self.num_slots = scheduler, num_slots
        self.share = Share(share)
        self._door = Door(path) if path else None
        self._worker: Worker | None = None
        self._running: Any = None  # the passes of a command
        self._wakes = False  # whether a command wakes a scheduler that sleeps

    @property
    def is_busy(self) -> bool:
        return self._running is not None

    def close(self) -> None:
        """Between two requests: what runs is dropped, and the slots are given back."""
        finished(self._leave())
        if self._door is not None:
            self._door.close()

    # ---- the first rank ----------------------------------------------------------------------------------------------

    def next_turn(self, received: Sequence[Any]) -> Turn | None:
        """Whether training has the next pass, given the requests that have just come in."""
        if self._door is None:
            return None
        scheduler = self.scheduler
        if scheduler.idle_sleeper is not None and not self._wakes:
            scheduler.idle_sleeper.poller.register(self._door.bell, zmq.POLLIN)
            self._wakes = True
        users = bool(
            received or scheduler.waiting_queue or scheduler.running_batch.reqs or scheduler.chunked_req
            or scheduler.grammar_manager.has_waiting_grammars()
        )  # fmt: skip
        before = self.share.recent
        self.share.tick(users)
        if self.share.recent != before:
            self._door.tell({"share": round(self.share.recent, 4)})
        if scheduler._engine_paused or received or scheduler.waiting_queue or not self.share.may_run:
            return None
        command = None if self._running is not None else self._door.next()
        if self._running is None and command is None:
            return None
        return Turn(self.share.most_tokens, self.share.most_steps, command)

    # ---- every rank --------------------------------------------------------------------------------------------------

    def take(self, turn: Turn) -> None:
        """One pass at most."""
        began, before, steps = time.monotonic(), self._tokens, 0
        try:
            if turn.command is not None:
                self._running = self._begin(*turn.command)
            if self._worker is not None:
                self._driver.most_tokens = turn.most_tokens
            while steps < turn.most_steps and self._tokens == before:
                steps += 1
                next(self._running)
        except StopIteration as end:
            self._end("ok", end.value)
        except InputError as error:
            self._give_up("refused", str(error))
        except Exception as error:  # training's fault is not the server's
            logger.warning("training on this server stopped: %s", traceback.format_exc())
            self._give_up("failed", f"{type(error).__name__}: {error}")
        self.share.ran(time.monotonic() - began, max(steps, 1), self._tokens - before)

    @property
    def _tokens(self) -> int:
        return 0 if self._worker is None else self._driver.counts.tokens_computed

    @property
    def _driver(self) -> LiveDriver:
        assert self._worker is not None
        assert isinstance(self._worker.driver, LiveDriver)
        return self._worker.driver

    def _begin(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """The passes of a command."""
        if (method, arguments) == LEFT:
            found: Any = self._leave()
        elif method == "arrive":
            found = self._arrive(*arguments)
        elif method in COMMANDS and self._worker is not None:
            found = getattr(self._worker, method)(*arguments)
        else:
            raise InputError(f"there is no {method} here")
        return found if isinstance(found, GeneratorType) else _at_once(found)

    def _give_up(self, kind: str, value: str) -> None:
        """End a command in its middle. What is under way of it holds memory, which an idle server is checked for."""
        if self._worker is not None:
            finished(self._driver.drain())
        self._end(kind, value)

    def _end(self, kind: str, value: Any) -> None:
        self._running = None
        if self._door is not None:
            self._door.answer(kind, value)

    def _arrive(self, arrival: Arrival) -> dict[str, Any]:
        check(self.scheduler, arrival)
        num_slots = min(arrival.num_probes, free_slots(self.scheduler, self.num_slots)) if arrival.shapes else 0
        lora_ids = [f"zotune-{index}" for index in range(num_slots)]
        theta_file = os.open(arrival.theta, os.O_RDONLY)
        try:
            theta = mapped_theta(theta_file, arrival.shapes, writable=False)
        finally:
            os.close(theta_file)
        driver = LiveDriver(self.scheduler, lora_ids or [None])
        self._worker = Worker(driver, arrival.spec, arrival.shapes, theta, pinned=True)
        return {"capacity": driver.capacity}

    def _leave(self) -> Passes[None]:
        """Passes until nothing of training's runs, and then its slots are free."""
        if self._worker is not None:
            yield from self._driver.drain()
            if self._worker.slots is not None:
                self._worker.slots.release()
        self._worker = None
        if self._door is not None:
            self._door.closed()


def _at_once(value: Any) -> Any:
    """Passes that are none."""
    return value
    yield


def free_slots(scheduler: Any, most: int | None) -> int:
    """How many LoRA slots training may take: half of them where the operator says nothing, one is always users'.

    Raises:
        InputError: there is none.
    """
    lora = scheduler.tp_worker.model_runner.lora_manager
    free = lora.max_loras_per_batch - 1 - lora.num_pinned_loras
    found = min(most or lora.max_loras_per_batch // 2, free)
    if found < 1:
        raise InputError("the server has no LoRA slot for training; start it with a larger --max-loras-per-batch")
    return int(found)


def check(scheduler: Any, arrival: Arrival) -> None:
    """Refuse what this server cannot train.

    Raises:
        InputError: in a sentence that says why.
    """
    arguments, runner = scheduler.server_args, scheduler.tp_worker.model_runner
    serves = str(arguments.model_path)
    if _real(arrival.model) != _real(serves):
        raise InputError(f"--model: the server has {serves}, not {arrival.model}")
    if arrival.dtype != _dtype(runner.dtype):
        raise InputError(f"--dtype: the server computes in {_dtype(runner.dtype)}, not {arrival.dtype}")
    if reason := _why_not(scheduler):
        raise InputError(f"the server trains nothing with {reason}")
    if not arrival.shapes:
        return
    if not scheduler.enable_lora:
        raise InputError("the server has no LoRA slots; start it with --enable-lora")
    pool = runner.lora_manager.memory_pool
    if arrival.spec.rank > pool.max_lora_rank:
        raise InputError(
            f"--lora-rank {arrival.spec.rank}: the server takes {pool.max_lora_rank}; start it with --max-lora-rank"
        )


def _why_not(scheduler: Any) -> str | None:
    from sglang.srt.disaggregation.utils import DisaggregationMode
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

    tree = scheduler.tree_cache
    if scheduler.page_size != 1:
        return "--page-size above 1"
    if scheduler.is_mixed_chunk:
        return "--enable-mixed-chunk"
    if not scheduler.spec_algorithm.is_none():
        return "--speculative-algorithm"
    if scheduler.disaggregation_mode != DisaggregationMode.NULL:
        return "prefill and decode on separate servers"
    if type(tree) is not UnifiedRadixCache or tree.supports_mamba() or tree.supports_swa():
        return "its kind of prefix cache (disabled, sliding window, state space, LMCache)"
    if scheduler.enable_hierarchical_cache:
        return "--enable-hierarchical-cache"
    return None


def _real(model: str) -> str:
    return os.path.realpath(model) if Path(model).exists() else model


@functools.cache
def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
