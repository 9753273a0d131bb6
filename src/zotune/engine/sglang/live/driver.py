"""The scheduler of a server, driven between its users' batches.

What is trained has queues and batches of its own, which are the scheduler's for the length of a pass. So no batch is
users' and ours at once: their answers are what they would be, and ours are the numbers of an own scheduler. The tree,
the memory of KV and the LoRA slots are shared.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from zotune.engine.sglang.driver import Driver
from zotune.engine.sglang.jobs import Job, Passes

_SCHEDULER = "sglang.srt.managers.scheduler:Scheduler."
NAMES = (
    _SCHEDULER + "is_fully_idle",
    "sglang.srt.managers.schedule_batch:ScheduleBatch",
)


class LiveDriver(Driver):
    """Where `Driver` has the scheduler to itself, this one has it for a pass at a time."""

    def __init__(self, scheduler: Any, lora_ids: Sequence[str | None]) -> None:
        from sglang.srt.managers.schedule_batch import ScheduleBatch

        super().__init__(scheduler, lora_ids)
        self.most_tokens = self._longest = 0  # of the next pass
        self._own: dict[str, Any] = {
            "waiting_queue": [],
            "running_batch": ScheduleBatch(reqs=[], batch_is_full=False),
            "last_batch": None,
            "chunked_req": None,
            "cur_batch_for_debug": None,
        }
        self._flushed = 0

    @property
    def is_waiting(self) -> bool:
        """Whether something of ours has been queued and is not done."""
        return bool(self._own["waiting_queue"] or self._own["chunked_req"] or self._own["running_batch"].reqs)

    @contextmanager
    def turn(self) -> Iterator[None]:
        scheduler, sampler = self.scheduler, self.runner.sampler
        if scheduler.enable_overlap and torch.accelerator.is_available():  # a batch of users may be under way
            torch.accelerator.synchronize()
        most = self.most_in_pass
        ours = self._own | {"max_prefill_tokens": most, "chunked_prefill_size": most}
        theirs = {name: getattr(scheduler, name) for name in ours}
        vars(scheduler).update(ours)
        self.runner.sampler = self.sampler
        try:
            yield
        finally:
            self.runner.sampler = sampler
            self._own = {name: getattr(scheduler, name) for name in self._own}
            vars(scheduler).update(theirs)

    def run(self, jobs: Sequence[Job]) -> Passes[None]:
        # Tokens that a gradient comes back to must be of one pass, however few it may have.
        self._longest = max((job.most_computed for job in jobs), default=0) if self.before_pass else 0
        yield from super().run(jobs)

    @property
    def most_in_pass(self) -> int:
        wanted = max(self.most_tokens, self._longest, self.whole)
        return min(wanted, super().most_in_pass, self.scheduler.max_prefill_tokens)

    def may_wait(self) -> bool:
        scheduler = self.scheduler
        return bool(scheduler.waiting_queue or scheduler.running_batch.reqs or scheduler.chunked_req)

    @property
    def capacity(self) -> int:
        """Of the memory of KV, half is the users'."""
        return super().capacity // 2

    def namespace(self, name: str) -> str:
        return f"zotune-{self._flushed}-{name}"

    def flush(self) -> None:
        """What was cached is not found again, and goes when memory is wanted."""
        self._flushed += 1

    def drain(self) -> Passes[None]:
        """Forget what is waiting, and run what has begun to an early end."""
        from sglang.srt.managers.schedule_batch import FINISH_ABORT

        self._own["waiting_queue"] = []
        while self.is_waiting:
            for request in self._own["running_batch"].reqs:
                request.to_finish = FINISH_ABORT("training has stopped")
            with self.turn():
                batch = self._next_batch()
                if batch is not None:
                    self.scheduler.process_batch_result(batch, self.scheduler.run_batch(batch))
                self.scheduler.last_batch = batch
            yield
