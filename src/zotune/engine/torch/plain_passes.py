"""The passes of the plain engine: transformers' own forward pass over whole rows.

Rows (see `rows.py`) are left-padded, so that the scored positions are the last ones and only they reach the LM head.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from zotune.engine.torch.layers import TrainedLayers
from zotune.engine.torch.rows import Row, make_rows
from zotune.zo.protocol import EngineStats, Example


class PlainPasses:
    """One causal model, and what is trained in it. `scored` are the positions of the last pass's scored tokens."""

    def __init__(self, model: PreTrainedModel, layers: TrainedLayers, stats: EngineStats, activated: bool) -> None:
        self.model, self.layers, self.stats = model, layers, stats
        self._activated = activated
        self.scored = torch.empty(0)

    def rows(self, batch: Sequence[Example]) -> list[Row]:
        return [row for index, example in enumerate(batch) for row in make_rows(index, example)]

    def inputs(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """Left-padded model inputs, no mask for a row alone; sets the token mask of the adapter."""
        longest = len(rows[0].input_ids)
        input_ids = torch.zeros((len(rows), longest), dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        self.layers.num_groups = 1
        for index, row in enumerate(rows):
            input_ids[index, longest - len(row.input_ids) :] = torch.tensor(row.input_ids)
            attention_mask[index, longest - len(row.input_ids) :] = 1
        device = self.model.device
        self.layers.adapted = attention_mask.bool().to(device)
        if self._activated:
            adapted = torch.tensor([row.num_adapted for row in rows])[:, None]
            self.layers.adapted = (torch.arange(longest)[None, :] >= longest - adapted).to(device)
            self.layers.token_mask = self.layers.adapted
        if len(rows) == 1:
            return {"input_ids": input_ids.to(device)}
        return {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}

    def log_probs(self, rows: list[Row], batch: Sequence[Example]) -> torch.Tensor:
        """One forward pass; log-probabilities of the tokens of the rows' candidates, one after the other."""
        inputs = self.inputs(rows)
        if "attention_mask" in inputs:
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        counts = [max(len(batch[row.example].candidates[c]) for c in row.candidates) for row in rows]
        num_scored, longest = max(counts), inputs["input_ids"].shape[1]
        first = torch.tensor([longest - count for count in counts], device=self.model.device)
        last_ones = torch.arange(longest - num_scored, longest, device=self.model.device)
        self.scored = last_ones.maximum(first[:, None])  # filled up with the first
        logits = self.model(**inputs, logits_to_keep=num_scored, use_cache=False).logits[:, -num_scored:]
        self.count(rows)
        targets = [
            (index, num_scored - len(candidate) + offset, token)
            for index, row in enumerate(rows)
            for candidate in (batch[row.example].candidates[c] for c in row.candidates)
            for offset, token in enumerate(candidate)
        ]
        return of_targets(logits, targets)

    def count(self, rows: list[Row]) -> None:
        """That a pass over these rows has run."""
        self.stats.forward_passes += 1
        self.stats.tokens_computed += sum(len(row.input_ids) for row in rows)


def of_targets(logits: torch.Tensor, targets: Sequence[tuple[int, int, int]]) -> torch.Tensor:
    """Log-probabilities of (row, place, token), of logits [rows, places, vocabulary]."""
    row_index, position, token = torch.tensor(targets, device=logits.device).unbind(dim=1)
    normalizers = torch.logsumexp(logits.float(), dim=-1)
    return logits[row_index, position, token].float() - normalizers[row_index, position]
