"""Where a reward function runs: in this process, or in one or more of its own.

Both kinds take a batch by `begin` and give what came of it by `answer`, so that the processes of several rewards work
at the same time. What is split among processes are records; a function that compares them with each other needs one.
"""

import pickle
from itertools import pairwise
from typing import Protocol

import numpy as np

from zotune.errors import first_line
from zotune.rewards.batch import Batch
from zotune.rewards.builtin import RewardFunction
from zotune.rewards.calling import Caller, Problem, Values
from zotune.rewards.process import RewardProcess


class Place(Protocol):
    """Where a reward function runs."""

    @property
    def progress(self) -> tuple[int, int]:
        """How many of its processes have answered, of how many that were asked."""
        ...

    def ready(self) -> Problem | None:
        """Wait until the function is loaded; what stands in the way, if anything does."""
        ...

    def begin(self, batch: Batch) -> None:
        """Take a batch."""
        ...

    def answer(self) -> Values | Problem:
        """The values of the batch, or what is wrong with them."""
        ...

    def abandon(self) -> None:
        """Leave a batch whose answer is not waited for any more."""
        ...

    def close(self) -> None:
        """End what runs."""
        ...


class RewardHere:
    """A function in this process, which waits for it however long it takes."""

    def __init__(self, function: RewardFunction) -> None:
        self._caller = Caller(function)
        self.progress = (0, 1)

    def ready(self) -> None:
        """It is there."""

    def begin(self, batch: Batch) -> None:
        self._batch, self.progress = batch, (0, 1)

    def answer(self) -> Values | Problem:
        answer = self._caller(self._batch.arguments, self._batch.count)
        self.progress = (1, 1)
        return answer

    def abandon(self) -> None:
        """Whoever called has left it already."""

    def close(self) -> None:
        self._caller.close()


class RewardPool:
    """A function in processes of its own."""

    def __init__(self, portable: str | bytes, timeout_s: float | None, num_processes: int) -> None:
        self._processes = [RewardProcess(portable, timeout_s) for _ in range(num_processes)]

    def ready(self) -> Problem | None:
        for process in self._processes:  # those that were ended load it at the same time
            process.start()
        problems = [process.ready() for process in self._processes]
        return next((problem for problem in problems if problem is not None), None)

    def begin(self, batch: Batch) -> None:
        self._sent: list[tuple[int, RewardProcess]] = []  # with the first record of its share
        self._answers: list[tuple[int, Values | Problem]] = []
        self._problem = self.ready()
        if self._problem is not None:
            return
        cuts = np.linspace(0, batch.count, min(len(self._processes), batch.count) + 1).astype(int).tolist()
        parts = [batch.part(start, stop) for start, stop in pairwise(cuts)]
        try:
            messages = [pickle.dumps((part.arguments, part.count)) for part in parts]
        except Exception as error:  # whatever the objects in the data raise
            text = f"cannot have the data in another process: {type(error).__name__}: {first_line(error)}"
            self._problem = Problem(text, 0)
            return
        for start, process, message in zip(cuts, self._processes, messages, strict=False):
            process.send(message)
            self._sent.append((start, process))

    def answer(self) -> Values | Problem:
        if self._problem is not None:
            return self._problem
        for start, process in self._sent:  # all, or one is left in its socket
            self._answers.append((start, process.receive()))
        values: Values = []
        for start, answer in self._answers:
            if isinstance(answer, Problem):
                index = None if answer.index is None else start + answer.index
                return Problem(answer.what, index, answer.details)
            values += answer
        return values

    @property
    def progress(self) -> tuple[int, int]:
        waiting = self._sent[len(self._answers) :]
        return len(self._answers) + sum(process.has_answered for _, process in waiting), len(self._sent)

    def abandon(self) -> None:
        for process in self._processes:
            process.end()

    def close(self) -> None:
        self.abandon()
