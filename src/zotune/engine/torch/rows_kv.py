"""The KV of rows that are being continued: what they share before them, and what each has of its own.

A row's own keys and values lie in a buffer with room for some tokens more, so that a new token is one write. Rows that
are finished leave it: the last ones move into their places. Attention reads the whole buffer, for which products are
fastest, and a mask hides what is not there yet.
"""

import numpy as np
import torch

from zotune.engine.torch.row_groups import RowGroups

ROOM = 16  # tokens that a buffer grows by
HIDDEN = -1e30  # added to a score; no infinity, of which differences are no numbers


class Prefix:
    """What several rows have before them, once for all of them.

    Args:
        kv: [layers, 2, groups, kv heads, tokens, size], keys and values, filled to the longest.
        lengths: how many tokens each group has.
        owners: the group of each row.
    """

    def __init__(self, kv: torch.Tensor, lengths: np.ndarray, owners: np.ndarray) -> None:
        self.kv = kv
        self.lengths = lengths
        self.owners = owners
        self._lay_out()

    def _lay_out(self) -> None:
        """What passes ask for, after a change."""
        device = self.kv.device
        self.rows = RowGroups(self.owners, len(self.lengths), device)
        hidden = np.arange(self.kv.shape[-2]) >= self.lengths[:, None]
        mask = torch.from_numpy(np.where(hidden, np.float32(HIDDEN), np.float32(0.0))).to(device)
        self.mask = mask[:, None, None] if hidden.any() else None  # [groups, kv heads, queries, tokens]

    def of(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, [groups, kv heads, tokens, size]."""
        keys, values = self.kv[layer]
        return keys, values

    def for_rows(self, owners: np.ndarray) -> "Prefix":
        """The same before other rows, without the groups that have none of them."""
        used, owners = np.unique(owners, return_inverse=True)
        kv = self.kv if len(used) == len(self.lengths) else self.kv[:, :, used]
        return Prefix(kv, self.lengths[used], owners)

    def keep(self, order: np.ndarray) -> None:
        """The rows are those of these numbers now; groups that are nobody's leave."""
        owners = self.owners[order]
        kept = np.zeros(len(self.lengths), dtype=bool)
        kept[owners] = True
        order, holes, movers = moves(kept)
        if len(holes):
            self.kv[:, :, holes] = self.kv[:, :, movers]
        self.kv, self.lengths = self.kv[:, :, : len(order)], self.lengths[order]
        number = np.empty(len(kept), dtype=np.int64)
        number[order] = np.arange(len(order))
        self.owners = number[owners]
        self._lay_out()


class FirstKV:
    """What one pass over the first tokens of rows attends to; collects the KV that it computes.

    Padding is on the right, where causal attention never lets a token see it.
    """

    def __init__(self, prefix: Prefix | None, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.prefix = prefix
        self.dtype = dtype
        self.computed: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        later = torch.full((size, size), HIDDEN, device=device).triu(1)
        self.own_mask = None if prefix is None else later[None, None, None]  # None: plain causal attention

    def extended(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.computed[layer] = (key, value)
        return key, value

    def layers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of each layer, [rows, kv heads, tokens, size].

        Raises:
            TypeError: not every layer is attention by transformers' interface.
        """
        if not self.computed or max(self.computed) != len(self.computed) - 1:
            raise TypeError("not all of its layers are attention of the usual kind")
        return [self.computed[layer] for layer in range(len(self.computed))]


class RowsKV:
    """What passes of one token a row attend to.

    Args:
        lengths: how many tokens each row has of its own.
        prefix: what the rows have before them.
    """

    def __init__(self, lengths: np.ndarray, prefix: Prefix | None, dtype: torch.dtype, device: torch.device) -> None:
        self.lengths = lengths.copy()
        self.prefix = prefix
        self.dtype = dtype
        self.device = device
        self.own_mask: torch.Tensor | None = None  # [rows, kv heads, heads a kv head, queries, tokens]
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []  # [rows, kv heads, capacity, size]
        self._at: int | tuple[torch.Tensor, torch.Tensor] = 0  # where the pass writes
        self._capacity = _rounded(int(lengths.max()) + 1)

    def put(self, rows: np.ndarray, items: np.ndarray, first: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """What a first pass computed: rows of these numbers have the KV of its items of those."""
        if not self._layers:
            self._layers = [
                tuple(of.new_zeros((len(self.lengths), of.shape[1], self._capacity, of.shape[3])) for of in layer)  # type: ignore[misc]
                for layer in first
            ]
        for buffers, layer in zip(self._layers, first, strict=True):
            for buffer, computed in zip(buffers, layer, strict=True):
                count = min(computed.shape[2], self._capacity)  # more is padding
                buffer[rows, :, :count] = computed[items, :, :count]

    def begin(self) -> None:
        """Make room for a token of each row, which the next pass writes and sees."""
        if (longest := int(self.lengths.max())) >= self._capacity:
            self._capacity = _rounded(longest + 1)
            self._layers = [(self._grown(keys), self._grown(values)) for keys, values in self._layers]
        hidden = np.arange(self._capacity) > self.lengths[:, None]
        mask = torch.from_numpy(np.where(hidden, np.float32(HIDDEN), np.float32(0.0))).to(self.device)
        self.own_mask = mask[:, None, None, None]
        self._at = longest
        if int(self.lengths.min()) < longest:
            self._at = (
                torch.arange(len(self.lengths), device=self.device),
                torch.from_numpy(self.lengths).to(self.device),
            )
        self.lengths = self.lengths + 1

    def extended(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (buffer[: len(key)] for buffer in self._layers[layer])
        for buffer, new in ((keys, key), (values, value)):
            if isinstance(self._at, int):
                buffer[:, :, self._at] = new[:, :, 0]
            else:
                row, place = self._at
                buffer[row, :, place] = new[:, :, 0]
        return keys, values

    def keep(self, kept: np.ndarray) -> np.ndarray:
        """Drop the rows where `kept` [rows] is false; gives the numbers that the rows had, in their new order."""
        order, holes, movers = moves(kept)
        if len(holes):
            for buffers in self._layers:
                for buffer in buffers:
                    buffer[holes] = buffer[movers]
        self.lengths = self.lengths[order]
        if self.prefix is not None:
            self.prefix.keep(order)
        return order

    def _grown(self, buffer: torch.Tensor) -> torch.Tensor:
        """With more room, and without the rows that have left."""
        rows, heads, count, size = len(self.lengths), *buffer.shape[1:]
        grown = buffer.new_zeros((rows, heads, self._capacity, size))
        grown[:, :, :count] = buffer[:rows]
        return grown


def moves(kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How few things move where some leave and no hole may be: the old numbers in the new order, and which holes are
    filled with which."""
    count = int(kept.sum())
    order = np.arange(count)
    holes, movers = np.flatnonzero(~kept[:count]), count + np.flatnonzero(kept[count:])
    order[holes] = movers
    return order, holes, movers


def _rounded(count: int) -> int:
    return -(-count // ROOM) * ROOM
