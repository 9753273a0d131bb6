"""What must be computed to score a batch, as rows of tokens: no SGLang here, and no numbers.

A row is the tokens of one forward pass: prompt, invocation and the beginning of a candidate, without its last token.
`num_base` of its first tokens are seen by the base model alone (scope activated: the prompt). It is scored at its last
`num_scored` positions; each target there is (candidate, position counted from the first scored one, token).

Where candidates of an example have several beginnings, the trunk they share is a row of its own where that saves
tokens: in scope everywhere, whose rows then continue it; and where the adapter may not see the trunk's last token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from zotune.zo.protocol import Example, TokenIds


@dataclass(frozen=True)
class Row:
    example: int
    tokens: TokenIds
    num_base: int
    num_scored: int
    targets: tuple[tuple[int, int, int], ...]  # (candidate, scored position, token)

    @property
    def first_scored(self) -> int:
        return len(self.tokens) - self.num_scored


@dataclass(frozen=True)
class Plan:
    """Rows in the order they are run: `trunks` first, whose KV in scope everywhere the `rows` continue."""

    trunks: tuple[Row, ...]
    rows: tuple[Row, ...]


def plan_rows(batch: Sequence[Example], activated: bool, together: bool = False) -> Plan:
    """The rows of a batch.

    Args:
        together: whether a row computes all tokens that its candidates are scored at, also the trunk's last one, so
            that gradients get from one to the other.
    """
    trunks: list[Row] = []
    rows: list[Row] = []
    for index, example in enumerate(batch):
        trunk = example.prompt + example.invocation
        num_base = len(example.prompt) if activated else 0
        starts: dict[TokenIds, list[int]] = {}
        for c, candidate in enumerate(example.candidates):
            starts.setdefault(candidate[:-1], []).append(c)
        # A row may score its candidates' first tokens where computing the trunk's last token is its own business.
        alone = bool(example.invocation) if activated else len(starts) == 1
        if together and not activated and not alone:
            trunks.append(Row(index, trunk[:-1], num_base, 0, ()))
            alone = True
        if not alone:
            first = tuple((c, 0, candidate[0]) for c, candidate in enumerate(example.candidates))
            trunks.append(Row(index, trunk, num_base, 1, first))
        for start, candidates in starts.items():
            if not alone and not start:
                continue
            begin = 0 if alone else 1  # the first token that this row scores
            targets = tuple(
                (c, offset - begin, token)
                for c in candidates
                for offset, token in enumerate(example.candidates[c])
                if offset >= begin
            )
            rows.append(Row(index, trunk + start, num_base, len(start) + 1 - begin, targets))
    return Plan(tuple(trunks), tuple(rows))


def common_prefix(sequences: Sequence[TokenIds]) -> TokenIds:
    """The tokens that all sequences begin with."""
    if not sequences:
        return ()
    low, high = min(sequences), max(sequences)
    same = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:same]


def tokens_needed(batch: Sequence[Example]) -> int:
    """What the plain engine would compute for one probe: every row whole."""
    return sum(
        len(example.prompt) + len(example.invocation) + len(start)
        for example in batch
        for start in {candidate[:-1] for candidate in example.candidates}
    )
