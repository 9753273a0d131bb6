"""Scope everywhere: a row per probe and example, since theta changes prompts too.

What all prompts of a batch begin with is computed once per probe. Padding is on the right.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch

from zotune.engine.torch.backward import Part
from zotune.engine.torch.shared_kv import SharedKV
from zotune.engine.torch.suffix import Suffix, ancestors, make_suffix
from zotune.engine.torch.suffix_passes import SuffixPasses, add_values, scores_of, tokens_needed
from zotune.zo.protocol import Example, TokenIds

MIN_SHARED = 8  # tokens: below, a shared prefix costs more than it saves


class Everywhere:
    """Passes over whole sequences, but for what they begin with; the probes are in place already."""

    def __init__(self, passes: SuffixPasses) -> None:
        self.passes = passes
        self.model, self.layers, self.stats = passes.model, passes.layers, passes.stats

    def score(self, num_probes: int, batch: Sequence[Example], scores: np.ndarray) -> None:
        """Add to zeros [probe, example, candidate]."""
        suffixes, num_shared = self.suffixes(batch)
        shared = self._shared(batch[0], num_shared, num_probes)
        for rows in self.chunks(suffixes, num_probes):
            add_values(self.log_probs(rows, suffixes, num_shared, shared, num_probes), rows, suffixes, scores)

    def parts(self, batch: Sequence[Example]) -> list[Part]:
        """The passes of a gradient that only scored tokens take part in: what prompts share has no record."""
        suffixes, num_shared = self.suffixes(batch)
        kept: list[SharedKV] = []

        def compute(rows: list[int]) -> torch.Tensor:
            if not kept:
                kept.append(self._shared(batch[0], num_shared, 1))
            before = self.stats.tokens_computed
            values = self.log_probs(rows, suffixes, num_shared, kept[0], 1)[0]
            self.stats.tokens_reused += tokens_needed([batch[i] for i in rows]) - (self.stats.tokens_computed - before)
            return values

        return [
            Part(
                partial(compute, rows),
                np.array([(i, c) for i in rows for c, _, _ in suffixes[i].targets]),
                partial(scores_of, rows, suffixes, batch),
            )
            for rows in self.chunks(suffixes, 1)
        ]

    def suffixes(self, batch: Sequence[Example]) -> tuple[list[Suffix], int]:
        """What follows what all prompts begin with, of each example, and how many tokens that is."""
        wholes = [example.prompt + example.invocation for example in batch]
        num_shared = common_prefix(wholes) if len(batch) > 1 else 0
        num_shared = num_shared if num_shared >= MIN_SHARED else 0
        suffixes = [
            make_suffix(whole[num_shared:], example.candidates) for whole, example in zip(wholes, batch, strict=True)
        ]
        return suffixes, num_shared

    def chunks(self, suffixes: list[Suffix], num_probes: int) -> Iterator[list[int]]:
        """Which go through the model together."""
        order = sorted(range(len(suffixes)), key=lambda i: len(suffixes[i].tokens), reverse=True)
        return self.passes.chunks(order, suffixes, num_probes)

    def _shared(self, first: Example, num_shared: int, num_probes: int) -> SharedKV:
        """What all prompts begin with, of each probe."""
        shared = SharedKV(num_probes)
        self.layers.num_groups = 1
        if num_shared:
            input_ids = np.tile(np.array([(first.prompt + first.invocation)[:num_shared]]), (num_probes, 1))
            positions = np.tile(np.arange(num_shared), (num_probes, 1))
            mask = self._mask(np.tri(num_shared, dtype=bool)[None, None].repeat(num_probes, axis=0))
            with torch.no_grad():
                self.passes.forward(input_ids, positions, np.zeros((num_probes, 1)), attention_mask=mask, kept=shared)
            self.stats.tokens_computed += num_probes * num_shared
            shared.complete = True
        return shared

    def log_probs(
        self, rows: list[int], suffixes: list[Suffix], num_shared: int, shared: SharedKV, num_probes: int
    ) -> torch.Tensor:
        """Log-probabilities [probe, target] of the rows' suffixes behind what is shared."""
        size = len(suffixes[rows[0]].tokens)
        input_ids = np.zeros((len(rows), size), dtype=np.int64)
        positions = np.zeros_like(input_ids)
        for row, i in enumerate(rows):
            count = len(suffixes[i].tokens)
            input_ids[row, :count] = suffixes[i].tokens
            positions[row, :count] = np.add(suffixes[i].depths, num_shared)
        allowed = None
        if num_shared or not all(suffixes[i].is_chain for i in rows):
            allowed = np.ones((len(rows), 1, size, num_shared + size), dtype=bool)
            for row, i in enumerate(rows):
                allowed[row, 0, :, num_shared:] = ancestors(suffixes[i], size)
        self.layers.num_groups = 1
        # Padding is on the right, so that plain causal attention, without a mask, never lets a token see it.
        scored = np.tile(self.passes.scored(rows, suffixes), (num_probes, 1))
        logits = self.passes.forward(
            np.tile(input_ids, (num_probes, 1)),
            np.tile(positions, (num_probes, 1)),
            scored,
            attention_mask=None if allowed is None else self._mask(np.tile(allowed, (num_probes, 1, 1, 1))),
            kept=shared if num_shared else None,
        )
        self.stats.tokens_computed += num_probes * sum(len(suffixes[i].tokens) for i in rows)
        places = np.arange(scored.size).reshape(num_probes, len(rows), -1)
        return self.passes.log_probs(logits, places, rows, suffixes)

    def _mask(self, allowed: np.ndarray) -> torch.Tensor:
        """To be added to attention scores, from which token [.., row] may see which [.., column]."""
        mask = torch.zeros(allowed.shape, dtype=self.passes.dtype)
        mask.masked_fill_(torch.from_numpy(~allowed), torch.finfo(mask.dtype).min)
        return mask.to(self.model.device)


def common_prefix(sequences: Sequence[TokenIds]) -> int:
    """How many tokens all sequences begin with, leaving each at least one of its own."""
    shortest = min(map(len, sequences)) - 1
    for index in range(shortest):
        if len({sequence[index] for sequence in sequences}) > 1:
            return index
    return max(0, shortest)
