"""The queue of work of one call: which pieces wait, who has which, what is late, what is done. It knows no Ray and no
clock: whoever asks says what time it is, so that it is the same queue in a run and in a simulation.

A worker takes a share of what waits that fits its pace, first those pieces whose prompts it has kept. A piece whose
worker is late is handed to another one, too, and the first answer counts: both have the same bits.
"""

import math
from collections import defaultdict, deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LATE = 4.0  # times what the pieces should take
LEAST_LATE_S = 1.0
UNKNOWN_S = 60.0  # where nobody knows how long a piece takes
MOST_LOST = 8


@dataclass(frozen=True, eq=False)
class Handed:
    """Pieces that a worker has."""

    worker: Hashable
    numbers: tuple[int, ...]
    size: int
    since: float
    due: float


class Paces:
    """Sizes a second of all workers that take part; None: not known yet."""

    def __init__(self, known: Mapping[Any, float | None]) -> None:
        self._known = known
        paces = sorted(pace for pace in known.values() if pace)
        self.usual = paces[len(paces) // 2] if paces else None
        self._total = sum(pace or self.usual or 1.0 for pace in known.values())

    def of(self, worker: Hashable) -> float | None:
        """That of a worker, or what is usual."""
        return self._known[worker] or self.usual

    def share(self, worker: Hashable) -> float:
        """Of what waits, as much as makes all end together."""
        return (self.of(worker) or 1.0) / self._total


class PieceLost(RuntimeError):
    """A piece was lost with one worker after another."""


class WorkQueue:
    """The pieces of a call.

    Args:
        sizes: of each piece, in whatever unit paces are.
        owners: the worker that has the prompts of each piece, or None.
        least_late_s: nobody is late sooner than this.
    """

    def __init__(
        self, sizes: Sequence[int], owners: Sequence[Hashable | None], least_late_s: float = LEAST_LATE_S
    ) -> None:
        self.sizes = sizes
        self._least_late_s = least_late_s
        self.results: dict[int, Any] = {}
        self.num_handed = 0
        self._waiting: dict[Hashable | None, deque[int]] = defaultdict(deque)
        for number, owner in enumerate(owners):
            self._waiting[owner].append(number)
        self._waiting_size = sum(sizes)
        self._handed: dict[Handed, None] = {}  # in the order of handing out
        self._sizes_of: dict[Hashable, int] = defaultdict(int)  # what each worker has
        self._losses: dict[int, int] = defaultdict(int)

    @property
    def is_done(self) -> bool:
        return len(self.results) == len(self.sizes)

    def take(self, worker: Hashable, paces: Paces, now: float) -> Handed | None:
        """Pieces for a worker; None where there are none for anybody now: half of a fair share of what waits, so that
        all end together though paces change."""
        share = self._waiting_size * paces.share(worker) / 2
        numbers = self._waiting_for(worker, share) or self._late(worker, now)
        if not numbers:
            return None
        size, pace = sum(self.sizes[number] for number in numbers), paces.of(worker)
        self._sizes_of[worker] += size
        lasts = UNKNOWN_S if pace is None else max(self._least_late_s, LATE * self._sizes_of[worker] / pace)
        handed = Handed(worker, tuple(numbers), size, now, now + lasts)
        self._handed[handed] = None
        self.num_handed += 1
        return handed

    def answer(self, handed: Handed, results: Mapping[int, Any]) -> None:
        """What a worker found of the pieces that it had."""
        self._end(handed)
        for number, result in results.items():
            self.results.setdefault(number, result)

    def give_back(self, handed: Handed) -> None:
        """The pieces wait again; for the same worker first."""
        self._end(handed)
        self._wait_again(handed)

    def lose(self, worker: Hashable) -> None:
        """A worker is gone, with what it had.

        Raises:
            PieceLost: it had a piece that other workers were lost with.
        """
        lost = [handed for handed in self._handed if handed.worker == worker]
        for handed in lost:
            self._end(handed)
        for handed in lost:
            for number in handed.numbers:
                self._losses[number] += 1
                if self._losses[number] >= MOST_LOST and number not in self.results:
                    raise PieceLost(f"{MOST_LOST} workers were lost with the same piece of work, one after the other")
            self._wait_again(handed)

    def late_workers(self, now: float) -> set[Hashable]:
        """Those who should have answered."""
        return {handed.worker for handed in self._handed if handed.due <= now}

    def next_due(self) -> float:
        """When somebody will be late next."""
        return min((handed.due for handed in self._handed), default=math.inf)

    def _end(self, handed: Handed) -> None:
        del self._handed[handed]
        self._sizes_of[handed.worker] -= handed.size

    def _waiting_for(self, worker: Hashable, share: float) -> list[int]:
        numbers: list[int] = []
        size = 0
        while self._waiting_size and (not numbers or size < share):
            number = self._next_for(worker)
            if numbers and size + self.sizes[number] > max(share, self.sizes[numbers[0]]) * 1.5:
                self._waiting[worker].appendleft(number)
                break
            self._waiting_size -= self.sizes[number]
            if number not in self.results:
                numbers.append(number)
                size += self.sizes[number]
        return numbers

    def _next_for(self, worker: Hashable) -> int:
        """Its own pieces, then those of nobody, then of whoever has most."""
        for owner in (worker, None):
            if self._waiting[owner]:
                return self._waiting[owner].popleft()
        return max(self._waiting.values(), key=len).pop()

    def _late(self, worker: Hashable, now: float) -> list[int]:
        """Pieces that others should have answered and nobody else was given yet."""
        has = {number for handed in self._handed if handed.due > now for number in handed.numbers}
        has |= {number for handed in self._handed if handed.worker == worker for number in handed.numbers}
        late = {number for handed in self._handed if handed.due <= now for number in handed.numbers}
        return sorted(late - has - self.results.keys())

    def _wait_again(self, handed: Handed) -> None:
        held = {number for other in self._handed for number in other.numbers}
        for number in handed.numbers:
            if number not in self.results and number not in held:
                self._waiting[handed.worker].append(number)
                self._waiting_size += self.sizes[number]
