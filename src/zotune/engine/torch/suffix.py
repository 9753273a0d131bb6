"""What is computed of an example once its prompt is known: a small tree of tokens.

Its trunk are the tokens that all candidates share; candidates branch off it, each without its last token, and share
what they begin alike. Nodes are numbered so that parents come first.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from zotune.zo.protocol import TokenIds


@dataclass(frozen=True)
class Suffix:
    """`scored` nodes are those whose next token is asked for; `targets` says what: (candidate, scored index, token).
    `second_at` is that of the example."""

    tokens: tuple[int, ...]
    depths: tuple[int, ...]  # position of each node, counted from the first trunk token
    parents: tuple[int, ...]  # -1 for the first
    scored: tuple[int, ...]
    targets: tuple[tuple[int, int, int], ...]
    second_at: int | None = None

    @property
    def is_chain(self) -> bool:
        return self.parents == tuple(range(-1, len(self.parents) - 1))


@lru_cache(maxsize=4096)
def make_suffix(trunk: TokenIds, candidates: tuple[TokenIds, ...]) -> Suffix:
    """The tree of `trunk` (at least one token) and its candidates."""
    tokens, depths, parents = list(trunk), list(range(len(trunk))), list(range(-1, len(trunk) - 1))
    children: dict[tuple[int, int], int] = {}
    scored: dict[int, int] = {}
    targets = []
    for c, candidate in enumerate(candidates):
        node = len(trunk) - 1
        for offset, token in enumerate(candidate):
            targets.append((c, scored.setdefault(node, len(scored)), token))
            if offset == len(candidate) - 1:
                break
            if (node, token) not in children:
                children[node, token] = len(tokens)
                tokens.append(token)
                depths.append(depths[node] + 1)
                parents.append(node)
            node = children[node, token]
    return Suffix(tuple(tokens), tuple(depths), tuple(parents), tuple(scored), tuple(targets))


def ancestors(suffix: Suffix, size: int) -> np.ndarray:
    """bool [size, size]: row i may see column j. Rows past the tree see only themselves."""
    count = len(suffix.tokens)
    visible = np.eye(size, dtype=bool)
    trunk = next((i for i, parent in enumerate(suffix.parents) if parent != i - 1), count)
    visible[:trunk, :trunk] = np.tri(trunk, dtype=bool)
    for node in range(trunk, count):
        visible[node] |= visible[suffix.parents[node]]
    return visible
