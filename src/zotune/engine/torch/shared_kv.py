"""The KV of what all prompts of a batch begin with, computed once per probe, in the form transformers' models ask for.

A model calls `update` once a layer with what it computed and attends to what it gets back. It is no `Cache` of
transformers': the engine brings masks and positions itself.
"""

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel


class SharedKV:
    """Takes the KV of a prefix, a row per probe; once `complete`, gives it to every row of its probe."""

    def __init__(self, num_probes: int) -> None:
        self.num_probes = num_probes
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.complete = False

    def get_seq_length(self, layer: int = 0) -> int:
        return self.layers[layer][0].shape[2] if self.complete else 0

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.complete:
            self.layers.append((keys, values))
            return keys, values
        shared_keys, shared_values = self.layers[layer]
        return self._joined(shared_keys, keys), self._joined(shared_values, values)

    def _joined(self, shared: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        rows, heads, count, size = new.shape
        past = shared.shape[2]
        joined = new.new_empty((rows, heads, past + count, size))
        by_probe = joined.view(self.num_probes, rows // self.num_probes, heads, past + count, size)
        by_probe[:, :, :, :past] = shared[:, None]
        joined[:, :, past:] = new
        return joined


def cache_name(model: PreTrainedModel) -> str:
    """What a model calls its argument for kept keys and values; transformers renamed it in 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
