"""How a call is cut into pieces: by a fixed rule, which knows nothing of the workers.

The last bits of a score depend on what else is in the pass: a product of other shape sums in another order. So what is
scored together is settled by the call alone, and a piece has the same bits whoever computes it, and when.

In scope activated a piece has all probes of some examples: the prompts' KV that a worker keeps is then of those
examples alone. In scope everywhere, where no prompt is kept, it has all examples under some probes. Where that gives
too few pieces, both are cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Piece:
    """Some probes of a call on some of its examples, by their places."""

    probes: range
    examples: range

    @property
    def size(self) -> int:
        """Pairs of a probe and an example."""
        return len(self.probes) * len(self.examples)


def cut(num_probes: int, num_examples: int, pieces: int, *, by_examples: bool) -> list[Piece]:
    """At least `pieces` pieces where there are as many pairs, in parts as even as can be."""
    first, second = (num_examples, num_probes) if by_examples else (num_probes, num_examples)
    num_first = min(pieces, first)
    num_second = min(-(-pieces // max(1, num_first)), second)
    grid = [(a, b) for a in _parts(first, num_first) for b in _parts(second, num_second)]
    return [Piece(b, a) if by_examples else Piece(a, b) for a, b in grid]


def _parts(count: int, parts: int) -> Sequence[range]:
    return [range(start, stop) for start, stop in pairwise([count * i // parts for i in range(parts + 1)])]
