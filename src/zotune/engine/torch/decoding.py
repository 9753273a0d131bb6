"""Texts of many probes and prompts at once: rows with kept KV, of which each pass computes one token.

A row is a probe and a prompt. What rows share is computed and held once (`row_starts.py`), a first pass computes what
each has of its own, and then all rows go on together. A row that has had its stop token leaves; the others go on.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from transformers import PreTrainedModel

from zotune.engine.torch.attention import padded, use_attention
from zotune.engine.torch.prompts import Prompts
from zotune.engine.torch.row_groups import RowGroups
from zotune.engine.torch.row_starts import Start, make_starts, packs
from zotune.engine.torch.rows_attention import attention
from zotune.engine.torch.rows_kv import FirstKV, Prefix, RowsKV
from zotune.engine.torch.suffix_passes import SuffixPasses
from zotune.engine.torch.token_choice import TokenChoice
from zotune.zo.protocol import Example, TokenIds

MAX_BYTES = 2**30  # of KV that is held at once, on a CPU, unless that is less than `MAX_SHARE` of the weights
MAX_SHARE = 0.25  # of the weights, or of a GPU's memory


class Decoding:
    """One model's.

    Args:
        prompts: where the prompts of scope activated are; None in scope everywhere.
    """

    def __init__(self, passes: SuffixPasses, prompts: Prompts | None) -> None:
        self.passes = passes
        self.prompts = prompts
        self.max_bytes = _max_bytes(passes.model)  # of KV that is held at once: the same in every call
        self._bytes_a_token = 1  # of KV; known once something was computed

    def max_probes(self, prompts: Sequence[Example], num_new: int) -> int:
        """How many probes may be in place at once."""
        longest = max(len(example.prompt) + len(example.invocation) for example in prompts)
        return int(max(1, min(self._max_tokens() // (longest + num_new), self._max_rows())))

    def texts(self, num_probes: int, prompts: Sequence[Example], choice: TokenChoice) -> list[list[TokenIds]]:
        """What each prompt goes on with under each probe that is in place, up to a stop token: [probe][prompt]."""
        num_new = choice.sampling.max_new_tokens
        starts = make_starts(prompts, self.prompts is not None)
        before = self.passes.stats.tokens_computed
        texts: list[list[list[int]]] = [[[] for _ in prompts] for _ in range(num_probes)]
        num_continued = 0
        with use_attention(self.passes.model, "zotune_rows", attention), self.passes.head.in_pass():
            try:
                shared = self._shared(starts[0].before, num_probes)
                for pack in packs(
                    starts, num_probes, num_new, self._max_tokens(), self._max_rows(), self.prompts is not None
                ):
                    some = [starts[i] for i in pack]
                    prefix = self._prefix(some, num_probes, shared)
                    logits, rows = self._begin(some, num_probes, prefix, num_new > 1)
                    num_continued += self._go_on(logits, rows, np.array(pack), starts, texts, choice)
            finally:
                self.passes.layers.rows = None
        needed = num_probes * sum(start.length for start in starts) + num_continued
        self.passes.stats.tokens_reused += needed - (self.passes.stats.tokens_computed - before)
        return [[tuple(text) for text in of_probe] for of_probe in texts]

    def _go_on(
        self,
        logits: torch.Tensor,
        rows: RowsKV | None,
        pack: np.ndarray,
        starts: Sequence[Start],
        texts: list[list[list[int]]],
        choice: TokenChoice,
    ) -> int:
        """Continue rows [prompts of the pack, probes] with tokens that are added to `texts`; how many were computed."""
        num_probes, num_computed, sampling = len(texts), 0, choice.sampling
        prompts, probes = np.repeat(pack, num_probes), np.tile(np.arange(num_probes), len(pack))
        positions = np.repeat([starts[i].length for i in pack], num_probes)
        self._set_slots(probes, num_probes)
        for place in range(sampling.max_new_tokens):
            tokens = choice.tokens(logits, probes, prompts, place)
            kept = ~np.isin(tokens, sampling.stop_token_ids)
            for row in np.flatnonzero(kept):
                text = texts[probes[row]][prompts[row]]
                text.append(int(tokens[row]))
                kept[row] = sampling.ends is None or not sampling.ends(text)
            if rows is None or place == sampling.max_new_tokens - 1 or not kept.any():
                break
            if not kept.all():
                order = rows.keep(kept)
                probes, prompts, positions, tokens = (each[order] for each in (probes, prompts, positions, tokens))
                self._set_slots(probes, num_probes)
            rows.begin()
            logits = self._forward(tokens[:, None], positions[:, None], np.zeros((len(tokens), 1)), rows)
            positions = positions + 1
            num_computed += len(tokens)
        self.passes.stats.tokens_computed += num_computed
        return num_computed

    def _begin(
        self, starts: list[Start], num_probes: int, prefix: Prefix | None, kept: bool
    ) -> tuple[torch.Tensor, RowsKV | None]:
        """The first passes of rows [starts, probes]: logits of the next token [rows, vocabulary], and the rows' KV."""
        unique = list(dict.fromkeys(starts))
        number = {start: index for index, start in enumerate(unique)}
        of_start = np.array([number[start] for start in starts])
        rows = None
        if kept:
            lengths = np.repeat([len(start.tokens) for start in starts], num_probes)
            rows = RowsKV(lengths, prefix, self.passes.dtype, self.passes.model.device)
        probe = np.arange(num_probes)
        logits: torch.Tensor | None = None
        alone = [replace(start, before=()) for start in unique]
        for some in packs(alone, num_probes, 0, self.passes.max_tokens, self._max_rows(), True):
            (here,) = np.nonzero(np.isin(of_start, some))  # of the starts, those that this pass is about
            places = np.array([some.index(n) for n in of_start[here]])
            row_numbers = (here[:, None] * num_probes + probe).ravel()
            items = (places[:, None] * num_probes + probe).ravel()
            first = None
            if prefix is not None:
                owners = prefix.owners.reshape(len(starts), num_probes)
                of_items = np.stack([owners[np.flatnonzero(of_start == n)[0]] for n in some]).ravel()
                first = prefix.for_rows(of_items)
            found, kv = self._first([unique[n] for n in some], num_probes, first)
            if logits is None:
                logits = found.new_empty((len(starts) * num_probes, found.shape[1]))
            logits[row_numbers] = found[items]
            layers = kv.layers()
            self._bytes_a_token = sum(2 * of[0].shape[1] * of[0].shape[3] * of[0].element_size() for of in layers)
            if rows is not None:
                rows.put(row_numbers, items, layers)
        assert logits is not None
        return logits, rows

    def _first(self, starts: list[Start], num_probes: int, prefix: Prefix | None) -> tuple[torch.Tensor, FirstKV]:
        """One pass over the first tokens of items [starts, probes]: logits [items, vocabulary], and the KV."""
        size = max(len(start.tokens) for start in starts)
        input_ids = np.zeros((len(starts), size), dtype=np.int64)
        positions = np.zeros_like(input_ids)  # of padding, too: a model's table of positions may be short
        for row, start in enumerate(starts):
            input_ids[row, : len(start.tokens)] = start.tokens
            positions[row, : len(start.tokens)] = np.arange(len(start.before), start.length)
        device = self.passes.model.device
        token_mask = None
        if not all(start.adapted for start in starts):
            adapted = np.repeat([start.adapted for start in starts], num_probes)
            token_mask = torch.from_numpy(adapted)[:, None].repeat(1, size).to(device)
        last = np.array([[len(start.tokens) - 1] for start in starts])
        kv = FirstKV(prefix, size, self.passes.dtype, device)
        self._set_slots(np.tile(np.arange(num_probes), len(starts)), num_probes)
        input_ids, positions, last = (np.repeat(array, num_probes, axis=0) for array in (input_ids, positions, last))
        logits = self._forward(input_ids, positions, last, kv, token_mask)
        self.passes.stats.tokens_computed += num_probes * sum(len(start.tokens) for start in starts)
        return logits, kv

    def _prefix(self, starts: list[Start], num_probes: int, shared: torch.Tensor | None) -> Prefix | None:
        """What rows [starts, probes] have before them."""
        if self.prompts is None:
            if shared is None:
                return None
            owners = np.tile(np.arange(num_probes), len(starts))
            return Prefix(shared.clone(), np.full(num_probes, shared.shape[-2]), owners)  # which rows that leave change
        befores = list(dict.fromkeys(start.before for start in starts))
        if not any(befores):
            return None
        number = {before: index for index, before in enumerate(befores)}
        kv, _ = padded(self.prompts.kv(befores))
        self.prompts.cache.trim()
        owners = np.repeat([number[start.before] for start in starts], num_probes)
        return Prefix(kv.to(self.passes.dtype), np.array([len(before) for before in befores]), owners)

    def _shared(self, tokens: TokenIds, num_probes: int) -> torch.Tensor | None:
        """The KV of what all prompts of scope everywhere begin with, of each probe: as `Prefix` has it."""
        if self.prompts is not None or not tokens:
            return None
        _, kv = self._first([Start((), tokens)], num_probes, None)
        return torch.stack([torch.stack(layer) for layer in kv.layers()])

    def _forward(
        self,
        input_ids: np.ndarray,
        positions: np.ndarray,
        last: np.ndarray,
        kv: FirstKV | RowsKV,
        token_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One pass; logits of the next token [rows, vocabulary]."""
        unused = torch.zeros((1, 1, 1, 1), device=self.passes.model.device)  # in place of a mask that the model makes
        return self.passes.forward(
            input_ids, positions, last, self.prompts is not None, token_mask, attention_mask=unused, rows_kv=kv
        )[:, -1]

    def _set_slots(self, probes: np.ndarray, num_probes: int) -> None:
        self.passes.layers.rows = RowGroups(probes, num_probes, self.passes.model.device)

    def _max_tokens(self) -> float:
        """Whose KV may be held at once."""
        return self.max_bytes / self._bytes_a_token

    def _max_rows(self) -> int:
        """That get logits in one pass."""
        return max(1, self.passes.head.max_logits // self.passes.model.config.get_text_config().vocab_size)


def _max_bytes(model: PreTrainedModel) -> float:
    if model.device.type == "cuda":
        return MAX_SHARE * torch.cuda.get_device_properties(model.device).total_memory
    return max(MAX_BYTES, MAX_SHARE * sum(parameter.nbytes for parameter in model.parameters()))
