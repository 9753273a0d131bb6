"""Scope activated: suffixes behind prompts that theta does not change, whose KV is the base model's and is kept.

The probes of an example lie side by side in one row, [examples, probes * suffix]; a mask lets a token see its prompt
and its own probe's earlier tokens, and LoRA is a batched product over the probes.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from zotune.engine.torch.attention import PromptKV, side_by_side
from zotune.engine.torch.backward import Part
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.engine.torch.prompts import Prompts
from zotune.engine.torch.suffix import Suffix, ancestors, make_suffix
from zotune.engine.torch.suffix_passes import SuffixPasses, add_values, scores_of, tokens_needed
from zotune.zo.protocol import Example, TokenIds


class Activated:
    """Passes behind kept prompts; the probes are in place already."""

    def __init__(self, passes: SuffixPasses, cache: PrefixCache) -> None:
        self.passes = passes
        self.model, self.layers, self.stats = passes.model, passes.layers, passes.stats
        self.prompts = Prompts(passes, cache)

    def score(self, num_probes: int, batch: Sequence[Example], scores: np.ndarray) -> None:
        """Add to zeros [probe, example, candidate]."""
        suffixes = [make_suffix(example.invocation, example.candidates) for example in batch]
        for rows in self.passes.chunks(by_length(batch, suffixes), suffixes, num_probes):
            prompts = [batch[i].prompt for i in rows]
            values = self.log_probs(prompts, self.prompts.kv(prompts), rows, suffixes, num_probes)
            self.stats.tokens_computed += num_probes * sum(len(suffixes[i].tokens) for i in rows)
            add_values(values, rows, suffixes, scores)
            self.prompts.cache.trim()

    def parts(self, batch: Sequence[Example]) -> list[Part]:
        """The passes of a gradient: through the suffixes alone."""
        suffixes = [make_suffix(example.invocation, example.candidates) for example in batch]
        return [
            Part(
                partial(self._log_probs_once, rows, suffixes, batch),
                np.array([(i, c) for i in rows for c, _, _ in suffixes[i].targets]),
                partial(scores_of, rows, suffixes, batch),
            )
            for rows in self.passes.chunks(by_length(batch, suffixes), suffixes, 1)
        ]

    def log_probs(
        self,
        prompts: list[TokenIds],
        prompt_kv: list[list[torch.Tensor]],
        rows: list[int],
        suffixes: list[Suffix],
        num_probes: int,
        differentiated: bool = False,
    ) -> torch.Tensor:
        """Log-probabilities [probe, target] of the rows' suffixes behind their prompts, probes side by side."""
        size = max(len(suffixes[i].tokens) for i in rows)
        input_ids = np.zeros((len(rows), size), dtype=np.int64)
        positions = np.zeros_like(input_ids)
        for row, i in enumerate(rows):
            count = len(suffixes[i].tokens)
            input_ids[row, :count] = suffixes[i].tokens
            positions[row, :count] = np.add(suffixes[i].depths, len(prompts[row]))
        visible = np.stack([ancestors(suffixes[i], size) for i in rows])
        scored = self.passes.scored(rows, suffixes)[:, None] + np.arange(num_probes)[:, None] * size
        self.layers.num_groups = len(rows)
        adapted = np.arange(size) < np.array([[len(suffixes[i].tokens)] for i in rows])
        self.layers.adapted = torch.from_numpy(np.tile(adapted, num_probes)).to(self.model.device)
        logits, _ = self._forward(
            prompt_kv,
            visible,
            np.tile(input_ids, num_probes),
            np.tile(positions, num_probes),
            scored.reshape(len(rows), -1),
            num_probes,
            differentiated,
        )
        places = np.arange(scored.size).reshape(scored.shape).transpose(1, 0, 2)
        return self.passes.log_probs(logits, places, rows, suffixes)

    def _log_probs_once(self, rows: list[int], suffixes: list[Suffix], batch: Sequence[Example]) -> torch.Tensor:
        """Log-probabilities [target] of rows under the adapter that is in place, and the counts of the pass."""
        before, prompts = self.stats.tokens_computed, [batch[i].prompt for i in rows]
        values = self.log_probs(prompts, self.prompts.kv(prompts), rows, suffixes, 1)[0]
        self.stats.tokens_computed += sum(len(suffixes[i].tokens) for i in rows)
        self.stats.tokens_reused += tokens_needed([batch[i] for i in rows]) - (self.stats.tokens_computed - before)
        self.prompts.cache.trim()
        return values

    def _forward(
        self,
        prompts: list[list[torch.Tensor]],
        visible: np.ndarray,
        input_ids: np.ndarray,
        positions: np.ndarray,
        scored: np.ndarray,
        num_probes: int = 1,
        differentiated: bool = False,
    ) -> tuple[torch.Tensor, PromptKV]:
        """One pass of probes side by side behind their prompts; logits, and the KV of the pass."""
        kv = PromptKV(
            prompts, torch.from_numpy(visible).to(self.model.device), num_probes, differentiated, self.passes.dtype
        )
        unused = torch.zeros((1, 1, 1, 1), device=self.model.device)  # in place of a mask that the model would make
        with side_by_side(self.model):
            return self.passes.forward(input_ids, positions, scored, True, attention_mask=unused, prompt_kv=kv), kv


def by_length(batch: Sequence[Example], suffixes: list[Suffix]) -> list[int]:
    """Examples, those with the longest prompts first."""
    return sorted(range(len(batch)), key=lambda i: (len(batch[i].prompt), len(suffixes[i].tokens)), reverse=True)
