"""The thetas that a driver speaks of, by number. One is known by the object that it is: none is ever written in place.

A theta that was made by a move goes to the workers as that move; any other as it is, once, through Ray's object store.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from zotune.zo.digest import digest
from zotune.zo.protocol import Theta

KEPT = 4  # as many as a worker keeps


@dataclass(eq=False)
class Numbered:
    """A theta, its number, and once somebody asked, its digest and its place in the object store."""

    number: int
    theta: Theta
    _digest: str | None = field(default=None, repr=False)
    stored: Any = None

    @property
    def digest(self) -> str:
        if self._digest is None:
            self._digest = digest(self.theta)
        return self._digest

    @property
    def num_bytes(self) -> int:
        return sum(value.nbytes for value in self.theta.values())


class Thetas:
    """Those of late; older ones get another number when they are met again."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, Numbered] = OrderedDict()
        self._next = 0

    def number(self, theta: Theta) -> Numbered:
        """This theta, with its number."""
        for number, known in self._known.items():
            if known.theta is theta:
                self._known.move_to_end(number)
                return known
        numbered = Numbered(self._next, theta)
        self._next += 1
        self._known[numbered.number] = numbered
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return numbered

    def announce(self) -> int:
        """The number that the next new theta will have."""
        return self._next

    def __getitem__(self, number: int) -> Numbered:
        return self._known[number]
