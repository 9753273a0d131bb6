"""Masked language models: every token sees the whole text, and candidates are asked for where the mask stands.

A row is the whole text, and has all candidates of its example. All probes of a step go through the model in one pass,
rows of like length together; only the mask's state reaches the head. Blocks below the first adapted one, which are the
same for all probes, are computed once for them. Padding is on the right, with the token that the model knows as such,
and masks and positions are the model's own.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from zotune.engine.torch.blocks import find_blocks
from zotune.engine.torch.everywhere import Everywhere
from zotune.engine.torch.lora import LoraLayers
from zotune.engine.torch.plain_passes import PlainPasses, of_targets
from zotune.engine.torch.rows import Row
from zotune.engine.torch.suffix import Suffix
from zotune.zo.protocol import Example

MOST_PADDING = 0.1  # of a pass's tokens, where a pass has many
MANY_TOKENS = 256


class PlainMaskedPasses(PlainPasses):
    """Whole rows of a masked model, as transformers computes them."""

    def rows(self, batch: Sequence[Example]) -> list[Row]:
        return [
            Row(index, example.prompt, 0, tuple(range(len(example.candidates)))) for index, example in enumerate(batch)
        ]

    def inputs(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """Right-padded model inputs, no mask for a row alone."""
        input_ids, there = padded([row.input_ids for row in rows], self.model)
        self.layers.num_groups, self.layers.adapted = 1, there
        return {"input_ids": input_ids} if len(rows) == 1 else {"input_ids": input_ids, "attention_mask": there.long()}

    def log_probs(self, rows: list[Row], batch: Sequence[Example]) -> torch.Tensor:
        inputs = self.inputs(rows)
        inputs |= kinds([batch[row.example].second_at for row in rows], inputs["input_ids"])
        places = [_place(batch[row.example]) for row in rows]
        self.scored = torch.tensor(places, device=self.model.device)[:, None]
        logits = self.model(**inputs).logits
        if logits.ndim == 2:  # a classifier's
            logits, places = logits[:, None], [0] * len(rows)
        self.count(rows)
        targets = [
            (index, place, batch[row.example].candidates[c][0])
            for index, (row, place) in enumerate(zip(rows, places, strict=True))
            for c in row.candidates
        ]
        return of_targets(logits, targets)


class Masked(Everywhere):
    """Passes over whole rows of all probes at once; the probes are in place already."""

    def suffixes(self, batch: Sequence[Example]) -> tuple[list[Suffix], int]:
        return [_whole(example) for example in batch], 0

    def chunks(self, suffixes: list[Suffix], num_probes: int) -> Iterator[list[int]]:
        for rows in super().chunks(suffixes, num_probes):
            yield from _of_like_length(rows, [len(suffix.tokens) for suffix in suffixes], num_probes)

    def log_probs(
        self, rows: list[int], suffixes: list[Suffix], num_shared: int, shared: object, num_probes: int
    ) -> torch.Tensor:
        """Log-probabilities [probe, target] of the rows' candidates."""
        below = self._below() if num_probes > 1 and len(rows) > 1 else 0
        repeats = 1 if below else num_probes
        input_ids, there = padded([suffixes[i].tokens for i in rows], self.model)
        self.layers.num_groups = 1
        self.layers.adapted = there.repeat(num_probes, 1)
        scored = np.tile(self.passes.scored(rows, suffixes), (num_probes, 1))
        more: dict[str, Any] = {} if bool(there.all()) else {"attention_mask": there.long()}
        more |= kinds([suffixes[i].second_at for i in rows], input_ids)
        self.layers.num_tokens = there.numel() * num_probes, len(scored)
        try:
            with self._repeated(below, len(rows), num_probes):
                more = {name: value.repeat(repeats, 1) for name, value in more.items()}
                logits = self.passes.forward(input_ids.repeat(repeats, 1).numpy(force=True), None, scored, **more)
        finally:
            self.layers.num_tokens = None
        self.stats.tokens_computed += num_probes * sum(len(suffixes[i].tokens) for i in rows)
        places = np.arange(scored.size).reshape(num_probes, len(rows), -1)
        return self.passes.log_probs(logits, places, rows, suffixes)

    def _below(self) -> int:
        """How many blocks from the bottom nothing is adapted in."""
        if not isinstance(self.layers, LoraLayers):
            return 0
        try:
            blocks = find_blocks(self.model)
        except TypeError:
            return 0
        adapted = set(map(id, self.layers.modules.values()))
        first = next((i for i, block in enumerate(blocks) if any(id(m) in adapted for m in block.modules())), 0)
        inside = {id(module) for block in blocks for module in block.modules()}
        return first if adapted <= inside else 0

    @contextmanager
    def _repeated(self, below: int, num_rows: int, num_probes: int) -> Iterator[None]:
        """Inside, a pass over the rows of one probe becomes one of all probes' rows behind so many blocks."""

        def repeated(value: Any) -> Any:
            of_rows = torch.is_tensor(value) and value.ndim > 2 and len(value) == num_rows
            return value.repeat(num_probes, *(1,) * (value.ndim - 1)) if of_rows else value

        def repeat(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return tuple(map(repeated, args)), {name: repeated(value) for name, value in kwargs.items()}

        blocks = find_blocks(self.model)[below:] if below else []
        hooks = [block.register_forward_pre_hook(repeat, with_kwargs=True) for block in blocks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def padded(rows: Sequence[Sequence[int]], model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [rows, longest], and which of them are no padding."""
    pad = getattr(model.config, "pad_token_id", None) or 0
    longest = max(map(len, rows))
    input_ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    there = torch.zeros((len(rows), longest), dtype=torch.bool)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.tensor(row)
        there[index, : len(row)] = True
    return input_ids.to(model.device), there.to(model.device)


def kinds(second_at: Sequence[int | None], input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Which tokens are of the second text of a pair, for models that tell the two apart."""
    if not any(second_at):
        return {}
    first = torch.tensor([at or input_ids.shape[1] for at in second_at], device=input_ids.device)
    places = torch.arange(input_ids.shape[1], device=input_ids.device)
    return {"token_type_ids": (places >= first[:, None]).long()}


def _place(example: Example) -> int:
    assert example.mask_at is not None, "an example of a masked model has a mask"
    return example.mask_at


@lru_cache(maxsize=4096)
def _whole(example: Example) -> Suffix:
    """A text as a chain of tokens, of which one is asked for."""
    tokens = example.prompt
    targets = tuple((c, 0, candidate[0]) for c, candidate in enumerate(example.candidates))
    return Suffix(
        tokens, tuple(range(len(tokens))), tuple(range(-1, len(tokens) - 1)), (_place(example),), targets,
        example.second_at,
    )  # fmt: skip


def _of_like_length(rows: list[int], lengths: list[int], num_probes: int) -> Iterator[list[int]]:
    """Rows, from the longest to the shortest, in passes with little padding, unless they would be small."""
    chunk: list[int] = []
    for row in rows:
        if chunk:
            whole = (len(chunk) + 1) * lengths[chunk[0]]
            padding = whole - sum(lengths[i] for i in chunk) - lengths[row]
            if padding > MOST_PADDING * whole and num_probes * len(chunk) * lengths[chunk[0]] >= MANY_TOKENS:
                yield chunk
                chunk = []
        chunk.append(row)
    yield chunk
