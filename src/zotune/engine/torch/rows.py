"""The rows of a batch where every token is computed, and which of them go through the model together.

A row is prompt + invocation + candidate without its last token; candidates that differ only in their last token
share a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from zotune.engine.scores import empty_scores
from zotune.zo.protocol import Example, Scores, TokenIds


@dataclass(frozen=True)
class Row:
    example: int
    input_ids: TokenIds
    num_adapted: int  # how many of the last tokens an activated adapter acts on
    candidates: tuple[int, ...]


def make_rows(index: int, example: Example) -> Iterator[Row]:
    """The rows of the batch's example number `index`."""
    sharing: dict[TokenIds, list[int]] = {}
    for c, candidate in enumerate(example.candidates):
        sharing.setdefault(candidate[:-1], []).append(c)
    for start, candidates in sharing.items():
        suffix = example.invocation + start
        yield Row(index, example.prompt + suffix, len(suffix), tuple(candidates))


def pack_rows(
    rows: list[Row], max_tokens: int, num_new: int = 0, alone_above: int | None = None
) -> Iterator[list[Row]]:
    """Rows of like length together, as many as fit: little padding, and the same packs for every probe.

    Args:
        num_new: tokens that will be generated behind each row.
        alone_above: rows of more tokens than this, with those, have no company.
    """
    pack: list[Row] = []
    for row in sorted(rows, key=lambda row: len(row.input_ids), reverse=True):
        longest = num_new + len(pack[0].input_ids if pack else row.input_ids)
        alone = alone_above is not None and longest > alone_above
        if pack and (alone or (len(pack) + 1) * longest > max_tokens):
            yield pack
            pack = []
        pack.append(row)
    yield pack


def put(token_values: torch.Tensor, rows: list[Row], batch: Sequence[Example], probe_scores: np.ndarray) -> None:
    """Sums over the tokens of the rows' candidates, into [example, candidate]."""
    values = iter(token_values.tolist())
    for row in rows:
        for c in row.candidates:
            probe_scores[row.example, c] = sum(next(values) for _ in batch[row.example].candidates[c])


def scores_of(rows: list[Row], batch: Sequence[Example], token_values: torch.Tensor) -> Scores:
    """The scores of a batch that is these rows, at one probe."""
    num_tokens, log_probs = empty_scores(1, batch)
    put(token_values, rows, batch, log_probs[0])
    return Scores(log_probs, num_tokens)


def tokens_of(row: Row, candidate: int, batch: Sequence[Example]) -> TokenIds:
    return batch[row.example].candidates[candidate]
