"""Attention of pieces of prompts that lie one after the other in a row, as an attention function of transformers.

A piece attends to what its own prompt has before it, whose keys and values are there already, and to itself causally;
never to the other pieces of the row. Each is computed by itself, so that its bits do not depend on its company.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import record_function

from zotune.engine.torch.attention import check_plain, joined
from zotune.zo.protocol import TokenIds


@dataclass(frozen=True)
class Piece:
    """Tokens of a prompt, and the KV of all tokens before them, run by run: [layers, 2, kv heads, tokens, size]."""

    tokens: TokenIds
    before: Sequence[torch.Tensor]

    @classmethod
    def after(cls, before: Sequence[torch.Tensor], prompt: TokenIds, most: int) -> "Piece":
        """The tokens of a prompt that follow what is there of it, so many at most."""
        start = cls((), before).start
        return cls(prompt[start : start + most], before)

    @property
    def start(self) -> int:
        """The position of the first token."""
        return sum(run.shape[3] for run in self.before)


class PiecesKV:
    """What one pass attends to, given to the model as `pieces_kv`; collects the KV that it computes.

    Args:
        places: each piece, and where in the row its first token lies.
        dtype: what is computed in.
    """

    def __init__(self, places: Sequence[tuple[Piece, int]], device: torch.device, dtype: torch.dtype) -> None:
        self.places = places
        self.dtype = dtype
        self.computed: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.masks = [_visible(piece).to(device) if piece.before else None for piece, _ in places]

    def blocks(self) -> list[torch.Tensor]:
        """The KV of each piece: [layers, 2, kv heads, tokens, size].

        Raises:
            TypeError: not every layer is attention by transformers' interface.
        """
        if not self.computed or max(self.computed) != len(self.computed) - 1:
            raise TypeError("not all of its layers are attention of the usual kind")
        layers = [self.computed[layer] for layer in range(len(self.computed))]
        return [
            torch.stack([
                torch.stack([kv[0, :, place : place + len(piece.tokens)] for kv in keys_and_values])
                for keys_and_values in layers
            ])
            for piece, place in self.places
        ]  # fmt: skip


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    *,
    pieces_kv: PiecesKV,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [1, heads, tokens, size] -> [1, tokens, heads, size].

    Raises:
        TypeError: the model asks for more than attention, such as sinks or a cap on scores.
    """
    check_plain(kwargs)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    query, key, value = (tensor.to(pieces_kv.dtype) for tensor in (query, key, value))
    pieces_kv.computed[layer] = (key, value)
    with record_function("zotune::attention"):
        output = torch.zeros_like(query)  # of padding, which belongs to no piece
        for (piece, place), mask in zip(pieces_kv.places, pieces_kv.masks, strict=True):
            own = slice(place, place + len(piece.tokens))
            keys, values = key[:, :, own], value[:, :, own]
            if piece.before:
                keys, values = (
                    torch.cat((joined(piece.before, layer, which)[None], new), dim=2)
                    for which, new in enumerate((keys, values))
                )
            output[:, :, own] = scaled_dot_product_attention(
                query[:, :, own], keys, values, attn_mask=mask, is_causal=mask is None, scale=scaling,
                enable_gqa=key.shape[1] != query.shape[1],
            )  # fmt: skip
        return output.transpose(1, 2), None


def _visible(piece: Piece) -> torch.Tensor:
    """bool [tokens, tokens before and its own]: what is before a piece, and in it what is not behind a token."""
    count = len(piece.tokens)
    return torch.ones((count, piece.start + count), dtype=torch.bool).tril(piece.start)
