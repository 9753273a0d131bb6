"""Scope everywhere: a row per probe and example, since theta changes prompts too.

What all prompts of a batch begin with is computed once per probe. Padding is on the right.
"""

from collections.abc import Sequence

import numpy as np
import torch

from zotune.engine.torch.shared_kv import SharedKV
from zotune.engine.torch.suffix import ancestors, make_suffix
from zotune.engine.torch.suffix_passes import SuffixPasses, add_values
from zotune.zo.protocol import Example, TokenIds

MIN_SHARED = 8  # tokens: below, a shared prefix costs more than it saves


class Everywhere:
    """Passes over whole sequences, but for what they begin with; the probes are in place already."""

    def __init__(self, passes: SuffixPasses) -> None:
        self.passes = passes
        self.model, self.layers, self.stats = passes.model, passes.layers, passes.stats

    def score(self, num_probes: int, batch: Sequence[Example], scores: np.ndarray) -> None:
        """Add to zeros [probe, example, candidate]."""
        wholes = [example.prompt + example.invocation for example in batch]
        num_shared = _common_prefix(wholes) if len(batch) > 1 else 0
        num_shared = num_shared if num_shared >= MIN_SHARED else 0
        self.layers.num_groups = 1
        shared = SharedKV(num_probes)
        if num_shared:
            input_ids = np.tile(np.array([wholes[0][:num_shared]]), (num_probes, 1))
            positions = np.tile(np.arange(num_shared), (num_probes, 1))
            mask = self._mask(np.tri(num_shared, dtype=bool)[None, None].repeat(num_probes, axis=0))
            self.passes.forward(
                input_ids, positions, np.zeros((num_probes, 1)), attention_mask=mask, past_key_values=shared
            )
            self.stats.tokens_computed += num_probes * num_shared
            shared.complete = True
        suffixes = [
            make_suffix(whole[num_shared:], example.candidates) for whole, example in zip(wholes, batch, strict=True)
        ]
        order = sorted(range(len(batch)), key=lambda i: len(suffixes[i].tokens), reverse=True)
        for rows in self.passes.chunks(order, suffixes, num_probes):
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
            # Padding is on the right, so that plain causal attention, without a mask, never lets a token see it.
            scored = np.tile(self.passes.scored(rows, suffixes), (num_probes, 1))
            logits = self.passes.forward(
                np.tile(input_ids, (num_probes, 1)),
                np.tile(positions, (num_probes, 1)),
                scored,
                attention_mask=None if allowed is None else self._mask(np.tile(allowed, (num_probes, 1, 1, 1))),
                past_key_values=shared if num_shared else None,
            )
            self.stats.tokens_computed += num_probes * sum(len(suffixes[i].tokens) for i in rows)
            places = np.arange(scored.size).reshape(num_probes, len(rows), -1)
            add_values(self.passes.log_probs(logits, places, rows, suffixes), rows, suffixes, scores)

    def _mask(self, allowed: np.ndarray) -> torch.Tensor:
        """To be added to attention scores, from which token [.., row] may see which [.., column]."""
        mask = torch.zeros(allowed.shape, dtype=self.passes.dtype)
        mask.masked_fill_(torch.from_numpy(~allowed), torch.finfo(mask.dtype).min)
        return mask.to(self.model.device)


def _common_prefix(sequences: Sequence[TokenIds]) -> int:
    """How many tokens all sequences begin with, leaving each at least one of its own."""
    shortest = min(map(len, sequences)) - 1
    for index in range(shortest):
        if len({sequence[index] for sequence in sequences}) > 1:
            return index
    return max(0, shortest)
