"""Keys and values that a forward pass does not compute, in the form that transformers' models ask for.

A model calls `update` once a layer with what it computed and attends to what it gets back. These are not `Cache`s of
transformers': they hold no state between passes, and the engine brings masks and positions itself.
"""

from typing import Any

import torch
from torch.profiler import record_function

from zotune.engine.prefix_cache import KVPool


class GatheredKV:
    """Each row's past lies in slots of the pool; with `store`, what the pass computes goes into slots of its own."""

    def __init__(self, pool: KVPool, slots: torch.Tensor, num_new: int, store: torch.Tensor | None = None) -> None:
        self.pool = pool
        self.num_past = slots.shape[1]
        self.index = torch.nn.functional.pad(slots, (0, num_new)).view(-1)  # room for the pass's own tokens
        self.shape = (slots.shape[0], self.num_past + num_new)
        self.store = store

    def get_seq_length(self, layer: int = 0) -> int:
        return self.num_past

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [rows, heads, tokens, size] of one layer, with the past before them."""
        if self.store is not None:
            self.pool.store(layer, self.store, keys[0].transpose(0, 1), values[0].transpose(0, 1))
        if self.num_past == 0:
            return keys, values
        return self._joined(self.pool.keys[layer], keys), self._joined(self.pool.values[layer], values)

    def _joined(self, pool: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        with record_function("zotune::cache"):
            joined = pool.index_select(0, self.index).view(*self.shape, *pool.shape[1:])
            joined[:, self.num_past :] = new.transpose(1, 2)
            return joined.transpose(1, 2)


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
