"""Prompts of scope activated: their KV is the base model's, from the cache or computed for it.

Pieces of many prompts lie one after the other in a row of fixed length, which is filled up with padding. A product of
matrices then has the same shape whatever is in the row, so that a piece has the same bits in every company. Whether
this model and machine really give them is tried at the first pass; where they do not, each piece is a pass of its own.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch.profiler import record_function

from zotune.engine.torch.attention import use_attention
from zotune.engine.torch.piece_attention import Piece, PiecesKV, attention
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.engine.torch.suffix_passes import SuffixPasses
from zotune.zo.protocol import TokenIds

logger = logging.getLogger("zotune")

BLOCKS_A_PASS = {"cpu": 2, "cuda": 16}


class Prompts:
    """The prompts of one model."""

    def __init__(self, passes: SuffixPasses, cache: PrefixCache) -> None:
        self.passes = passes
        self.cache = cache
        self.same_in_company: bool | None = None  # not known before there is a pass

    def kv(self, prompts: Sequence[TokenIds]) -> list[list[torch.Tensor]]:
        """The KV of each prompt, run by run: [layers, 2, kv heads, tokens, head size]."""
        layers = self.passes.layers
        layers.active = False
        # No inference mode: a backward pass may read what is kept.
        with record_function("zotune::cache"), torch.inference_mode(False), torch.no_grad():
            kv = self.cache.kv(prompts, self._compute)
        layers.active = True
        return kv

    def _compute(self, pieces: Sequence[Piece]) -> list[torch.Tensor]:
        """The KV of pieces, whatever order they are in."""
        size = self.cache.block * BLOCKS_A_PASS.get(self.passes.model.device.type, 2)
        if self.same_in_company is None:
            self.same_in_company = self._try_company(pieces, size)
        found: dict[int, torch.Tensor] = {}
        for row in _fill(pieces, size) if self.same_in_company else [[i] for i in range(len(pieces))]:
            some = [pieces[i] for i in row]
            length = size if self.same_in_company else len(some[0].tokens)
            found |= dict(zip(row, self._pass(some, length), strict=True))
            self.passes.stats.tokens_computed += sum(len(piece.tokens) for piece in some)
        return [found[i] for i in range(len(pieces))]

    def _try_company(self, pieces: Sequence[Piece], size: int) -> bool:
        """Whether pieces have the same bits at the other end of a row, with others in it."""
        model = self.passes.model
        settings = vars(model.config.get_text_config()).items()
        if any("expert" in name and isinstance(value, int) and value > 1 for name, value in settings):
            return False  # how many tokens go to an expert, and so the shape of its products, is up to the company
        stats = vars(self.passes.stats).copy()
        row = [pieces[i] for i in _fill(pieces, size)[0]]
        some = row[: (len(row) + 1) // 2]
        other = [Piece(piece.tokens[::-1], piece.before) for piece in row[len(some) :]]
        moved = self._pass([*other, *some[::-1]], size, at_end=True)[len(other) :][::-1]
        same = all(map(torch.equal, self._pass(row, size), moved))
        vars(self.passes.stats).update(stats)
        if not same:
            logger.info("prompts are computed one at a time: their last bits depend on what is computed beside them")
        return same

    def _pass(self, pieces: Sequence[Piece], length: int, at_end: bool = False) -> list[torch.Tensor]:
        """One pass of a row of `length` tokens, filled up behind the pieces, or before them."""
        input_ids = np.zeros((1, length), dtype=np.int64)
        positions = np.zeros_like(input_ids)
        place = length - sum(len(piece.tokens) for piece in pieces) if at_end else 0
        places = []
        for piece in pieces:
            end = place + len(piece.tokens)
            input_ids[0, place:end] = piece.tokens
            positions[0, place:end] = np.arange(piece.start, piece.start + len(piece.tokens))
            places.append((piece, place))
            place = end
        model = self.passes.model
        kv = PiecesKV(places, model.device, self.passes.dtype)
        unused = torch.zeros((1, 1, 1, 1), device=model.device)  # in place of a mask that the model would make
        with use_attention(model, _NAME, attention):
            self.passes.forward(input_ids, positions, np.zeros((1, 0)), True, attention_mask=unused, pieces_kv=kv)
        return kv.blocks()


def _fill(pieces: Sequence[Piece], size: int) -> list[list[int]]:
    """The numbers of the pieces that share a row of at most `size` tokens: each goes into the first with room."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(pieces)), key=lambda i: len(pieces[i].tokens), reverse=True):
        count = len(pieces[i].tokens)
        row = next((row for row, left in enumerate(room) if left >= count), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(size)
        rows[row].append(i)
        room[row] -= count
    return rows


_NAME = "zotune_pieces"
