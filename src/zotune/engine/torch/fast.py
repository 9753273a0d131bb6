"""The fast engine on transformers models: every number of the plain engine, with fewer tokens computed.

Scope `activated`: prompts are base-model KV from the prefix cache. The probes of an example lie side by side in one
row, [examples, probes * suffix]; a mask lets a token see its prompt and its own probe's earlier tokens, and LoRA is a
batched product over the probes. Scope `everywhere`: a row per probe and example; what all prompts of a batch begin
with is computed once per probe. In both, candidates share their prompt and only scored positions reach the LM head.
"""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.profiler import record_function
from transformers import PreTrainedModel

from zotune.adapter.spec import AdapterSpec
from zotune.engine.scores import empty_scores
from zotune.engine.torch.attention import PromptKV, side_by_side
from zotune.engine.torch.backward import Part, scores_and_gradient
from zotune.engine.torch.forward_mode import values_and_tangents
from zotune.engine.torch.head import MAX_LOGITS, ScoredHead
from zotune.engine.torch.lora import LoraLayers
from zotune.engine.torch.plain import PlainEngine
from zotune.engine.torch.prefix_cache import NoPrefixCache, PrefixCache
from zotune.engine.torch.shared_kv import SharedKV
from zotune.engine.torch.suffix import Suffix, ancestors, make_suffix
from zotune.engine.torch.weights import ModelWeights
from zotune.zo.protocol import AT_THETA, Cotangents, Example, Need, Probe, Sampling, Scores, Theta, TokenIds

MIN_SHARED = 8  # tokens: below, a shared prefix costs more than it saves
logger = logging.getLogger("zotune")


class TorchEngine:
    """Scores probes of an adapter, or of all parameters, on a causal LM of transformers, on CPU or CUDA.

    Models whose attention does not take a mask and a cache from outside (found by a trial at the start) go through the
    plain engine, and the log says so.

    Args:
        model: the base model; it is put in evaluation mode and gets forward hooks until `close`.
        spec: the form of the adapter, LoRA or a soft prompt; None: theta is the model's own parameters.
        prefix_cache: where prompts are kept, in scope `activated`.
        max_tokens_per_forward: rows are packed into forward passes of at most this many computed tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        spec: AdapterSpec | None,
        prefix_cache: PrefixCache | None = None,
        max_tokens_per_forward: int = 8192,
    ) -> None:
        self.plain = PlainEngine(model, spec)
        self.model = self.plain.model
        self.spec = self.plain.spec
        self.scope = self.plain.scope
        self.stats = self.plain.stats
        self.layers = self.plain.layers
        self.cache = prefix_cache or NoPrefixCache()
        self.max_tokens_per_forward = max_tokens_per_forward
        self._window = getattr(model.config.get_text_config(), "sliding_window", None)
        self.head = ScoredHead(model)
        self.plain_reason = self._try_out()
        if self.plain_reason:
            logger.info("every token will be computed, without reuse: %s", self.plain_reason)

    @property
    def weights(self) -> ModelWeights | None:
        return self.plain.weights

    @property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        return self.plain.tensor_shapes

    def identity(self) -> str | None:
        return self.plain.identity()

    @torch.inference_mode()
    def score(self, theta: Theta, probes: Sequence[Probe], batch: Sequence[Example]) -> Scores:
        if self.plain_reason or not self._fits(batch):
            return self.plain.score(theta, probes, batch)
        if any(probe.derivative for probe in probes):
            return self._score_tangents(theta, probes, batch)
        num_tokens, log_probs = empty_scores(len(probes), batch)
        needed, before = _tokens_needed(batch) * len(probes), self.stats.tokens_computed
        score_some = self._score_activated if self.scope == "activated" else self._score_everywhere
        longest = max(len(example.invocation) + max(map(len, example.candidates)) for example in batch)
        most = self.layers.max_probes or max(1, self.max_tokens_per_forward // longest)
        for start in range(0, len(probes), most):
            some = probes[start : start + most]
            self.layers.place(theta, some)
            score_some(len(some), batch, log_probs[start : start + most])
        self.stats.tokens_reused += needed - (self.stats.tokens_computed - before)
        return Scores(log_probs, num_tokens)

    def gradient(self, theta: Theta, batch: Sequence[Example], cotangents: Cotangents) -> tuple[Scores, Theta]:
        """By backpropagation: in scope activated through the suffixes alone, since prompts do not change with theta."""
        if self.plain_reason or self.scope == "everywhere" or not self._fits(batch):
            return self.plain.gradient(theta, batch, cotangents)
        suffixes = [make_suffix(example.invocation, example.candidates) for example in batch]
        parts = [
            Part(
                partial(self._log_probs_once, rows, suffixes, batch),
                np.array([(i, c) for i in rows for c, _, _ in suffixes[i].targets]),
                partial(_scores, rows, suffixes, batch),
            )
            for rows in self._chunks(_by_length(batch, suffixes), suffixes, 1)
        ]
        score = partial(self.score, theta, [AT_THETA], batch)
        return scores_and_gradient(self.model, self.layers, theta, parts, score, cotangents)

    def why_not(self, need: Need) -> str | None:
        return self.plain.why_not(need)

    def generate(
        self, theta: Theta, probes: Sequence[Probe], prompts: Sequence[Example], sampling: Sampling
    ) -> list[list[TokenIds]]:
        return self.plain.generate(theta, probes, prompts, sampling)

    def peak_memory_bytes(self) -> int:
        return self.plain.peak_memory_bytes()

    def close(self) -> None:
        self.head.remove()
        self.plain.close()

    # ---- scope activated -----------------------------------------------------------------------------------------

    def _score_activated(self, num_probes: int, batch: Sequence[Example], scores: np.ndarray) -> None:
        suffixes = [make_suffix(example.invocation, example.candidates) for example in batch]
        for rows in self._chunks(_by_length(batch, suffixes), suffixes, num_probes):
            prompts = [batch[i].prompt for i in rows]
            values = self._log_probs_behind(prompts, [self._prompt_kv(p) for p in prompts], rows, suffixes, num_probes)
            self.stats.tokens_computed += num_probes * sum(len(suffixes[i].tokens) for i in rows)
            _add(values, rows, suffixes, scores)
            self.cache.trim()

    def _log_probs_behind(
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
        scored = self._scored(rows, suffixes)[:, None] + np.arange(num_probes)[:, None] * size
        self.layers.num_groups = len(rows)
        logits, _ = self._forward_behind(
            prompt_kv,
            visible,
            np.tile(input_ids, num_probes),
            np.tile(positions, num_probes),
            scored.reshape(len(rows), -1),
            num_probes,
            differentiated,
        )
        places = np.arange(scored.size).reshape(scored.shape).transpose(1, 0, 2)
        return self._log_probs(logits, places, rows, suffixes)

    def _log_probs_once(self, rows: list[int], suffixes: list[Suffix], batch: Sequence[Example]) -> torch.Tensor:
        """Log-probabilities [target] of rows under the adapter that is in place, and the counts of the pass."""
        before, prompts = self.stats.tokens_computed, [batch[i].prompt for i in rows]
        values = self._log_probs_behind(prompts, [self._prompt_kv(p) for p in prompts], rows, suffixes, 1)[0]
        self.stats.tokens_computed += sum(len(suffixes[i].tokens) for i in rows)
        self.stats.tokens_reused += _tokens_needed([batch[i] for i in rows]) - (self.stats.tokens_computed - before)
        self.cache.trim()
        return values

    def _score_tangents(self, theta: Theta, probes: Sequence[Probe], batch: Sequence[Example]) -> Scores:
        """One pass gives theta's scores and all their derivatives; in scope everywhere the prompts' too.

        A prompt under an activated adapter does not change with theta: its KV is the cache's.
        """
        num_tokens, log_probs = empty_scores(len(probes), batch)
        tangents, before = np.zeros_like(log_probs), self.stats.tokens_computed
        everywhere = self.scope == "everywhere"
        prompts = [() if everywhere else example.prompt for example in batch]
        trunks = [example.prompt + example.invocation if everywhere else example.invocation for example in batch]
        suffixes = [make_suffix(trunk, e.candidates) for trunk, e in zip(trunks, batch, strict=True)]
        most = max(1, self.max_tokens_per_forward // max(len(suffix.tokens) for suffix in suffixes) - 1)
        for start in range(0, len(probes), most):
            some = slice(start, start + most)
            count = 1 + len(probes[some])
            for rows in self._chunks(_by_length(batch, suffixes), suffixes, count):
                kept = [[] if everywhere else self._prompt_kv(prompts[i]) for i in rows]
                compute = partial(self._log_probs_behind, [prompts[i] for i in rows], kept, rows, suffixes, 1, True)
                assert isinstance(self.layers, LoraLayers)
                values, moved = values_and_tangents(self.layers, theta, probes[some], compute)
                self.stats.tokens_computed += count * sum(len(suffixes[i].tokens) for i in rows)
                _add(values.expand(count - 1, -1), rows, suffixes, log_probs[some])
                _add(moved[:, 0], rows, suffixes, tangents[some])
                self.cache.trim()
            self.stats.tokens_reused += _tokens_needed(batch) * count
        self.stats.tokens_reused -= self.stats.tokens_computed - before
        return Scores(log_probs, num_tokens, tangents)

    def _prompt_kv(self, prompt: TokenIds) -> list[torch.Tensor]:
        self.layers.active = False
        # No inference mode: a backward pass may read what is kept.
        with record_function("zotune::cache"), torch.inference_mode(False), torch.no_grad():
            kv = self.cache.kv(prompt, self._compute_block)
        self.layers.active = True
        return kv

    def _compute_block(self, tokens: TokenIds, before: list[torch.Tensor]) -> torch.Tensor:
        """The KV of one block: one row, so that its bits do not depend on company."""
        count, start = len(tokens), sum(run.shape[3] for run in before)
        positions, visible = np.arange(start, start + count)[None], np.tri(count, dtype=bool)[None]
        _, kv = self._forward_behind([before], visible, np.array([tokens]), positions, np.zeros((1, 1)))
        self.stats.tokens_computed += count
        return kv.block()

    def _forward_behind(
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
        kv = PromptKV(prompts, torch.from_numpy(visible).to(self.model.device), num_probes, differentiated)
        unused = torch.zeros((1, 1, 1, 1), device=self.model.device)  # in place of a mask that the model would make
        with side_by_side(self.model):
            return self._forward(input_ids, positions, scored, attention_mask=unused, prompt_kv=kv), kv

    # ---- scope everywhere ----------------------------------------------------------------------------------------

    def _score_everywhere(self, num_probes: int, batch: Sequence[Example], scores: np.ndarray) -> None:
        wholes = [example.prompt + example.invocation for example in batch]
        num_shared = _common_prefix(wholes) if len(batch) > 1 else 0
        num_shared = num_shared if num_shared >= MIN_SHARED else 0
        self.layers.num_groups = 1
        shared = SharedKV(num_probes)
        if num_shared:
            input_ids = np.tile(np.array([wholes[0][:num_shared]]), (num_probes, 1))
            positions = np.tile(np.arange(num_shared), (num_probes, 1))
            mask = self._mask(np.tri(num_shared, dtype=bool)[None, None].repeat(num_probes, axis=0))
            self._forward(input_ids, positions, np.zeros((num_probes, 1)), attention_mask=mask, past_key_values=shared)
            self.stats.tokens_computed += num_probes * num_shared
            shared.complete = True
        suffixes = [
            make_suffix(whole[num_shared:], example.candidates) for whole, example in zip(wholes, batch, strict=True)
        ]
        order = sorted(range(len(batch)), key=lambda i: len(suffixes[i].tokens), reverse=True)
        for rows in self._chunks(order, suffixes, num_probes):
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
            scored = np.tile(self._scored(rows, suffixes), (num_probes, 1))
            logits = self._forward(
                np.tile(input_ids, (num_probes, 1)),
                np.tile(positions, (num_probes, 1)),
                scored,
                attention_mask=None if allowed is None else self._mask(np.tile(allowed, (num_probes, 1, 1, 1))),
                past_key_values=shared if num_shared else None,
            )
            self.stats.tokens_computed += num_probes * sum(len(suffixes[i].tokens) for i in rows)
            places = np.arange(scored.size).reshape(num_probes, len(rows), -1)
            _add(self._log_probs(logits, places, rows, suffixes), rows, suffixes, scores)

    # ---- common --------------------------------------------------------------------------------------------------

    def _chunks(self, order: list[int], suffixes: list[Suffix], num_probes: int) -> Iterator[list[int]]:
        """Examples of like length together, as many as the budgets of tokens and of logits allow."""
        chunk: list[int] = []
        size = scored = 0
        for i in order:
            size, scored = max(size, len(suffixes[i].tokens)), max(scored, len(suffixes[i].scored))
            rows = (len(chunk) + 1) * num_probes
            if chunk and (rows * size > self.max_tokens_per_forward or not self.head.takes(rows * scored)):
                yield chunk
                chunk, size, scored = [], len(suffixes[i].tokens), len(suffixes[i].scored)
            chunk.append(i)
        yield chunk

    def _scored(self, rows: list[int], suffixes: list[Suffix]) -> np.ndarray:
        """Scored nodes of each row, filled with the first: [rows, scored]."""
        scored = np.zeros((len(rows), max(len(suffixes[i].scored) for i in rows)), dtype=np.int64)
        for row, i in enumerate(rows):
            scored[row, : len(suffixes[i].scored)] = suffixes[i].scored
        return scored

    def _forward(self, input_ids: np.ndarray, positions: np.ndarray, scored: np.ndarray, **more: Any) -> torch.Tensor:
        """One pass; logits at the scored positions [rows, scored], as `ScoredHead.log_probs` takes them."""
        self.layers.token_mask = None
        self.head.pick(self._tensor(scored))
        try:
            with record_function("zotune::forward"):
                logits = self.model(
                    input_ids=self._tensor(input_ids),
                    position_ids=self._tensor(positions),
                    use_cache=more.get("past_key_values") is not None,
                    **more,
                ).logits
        finally:
            self.head.pick(None)
        self.stats.forward_passes += 1
        return logits

    def _mask(self, allowed: np.ndarray) -> torch.Tensor:
        """To be added to attention scores, from which token [.., row] may see which [.., column]."""
        mask = torch.zeros(allowed.shape, dtype=self.model.dtype)
        mask.masked_fill_(torch.from_numpy(~allowed), torch.finfo(self.model.dtype).min)
        return mask.to(self.model.device)

    def _log_probs(
        self, logits: torch.Tensor, places: np.ndarray, rows: list[int], suffixes: list[Suffix]
    ) -> torch.Tensor:
        """The log-probabilities of the candidates' tokens [probe, target].

        Args:
            places: [probes, rows, scored], where the head has the logits of a scored node.
        """
        targets = np.array([(row, node, token) for row, i in enumerate(rows) for _, node, token in suffixes[i].targets])
        row, node, token = targets.T
        at = places[:, row, node]  # [probes, targets]
        values = self.head.log_probs(logits, self._tensor(at.ravel()), self._tensor(np.tile(token, len(places))))
        return values.view(at.shape)

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(self.model.device)

    def _fits(self, batch: Sequence[Example]) -> bool:
        """Whether the layout serves these examples; it needs a token to compute, and full attention."""
        longest = max(len(e.prompt) + len(e.invocation) + max(map(len, e.candidates)) for e in batch)
        trunk = min(len(e.invocation if self.scope == "activated" else e.prompt + e.invocation) for e in batch)
        return trunk > 0 and not (self._window and longest > self._window)

    def _try_out(self) -> str | None:
        """Why this model must go through the plain engine, or None: both score a small batch and must agree."""
        if any(module is self.model.get_output_embeddings() for module in self.layers.modules):
            return "the adapter is on the output layer"
        vocabulary = self.model.config.get_text_config().vocab_size
        ids = tuple((7 * i + 3) % vocabulary for i in range(24))
        start = self.spec.virtual_tokens[:MIN_SHARED] if self.spec else ()  # few: the model's context may be short
        batch = [
            Example(start + ids[:17], ids[17:19], (ids[19:20], ids[20:23])),
            Example(start + ids[5:15], ids[17:19], (ids[19:20],)),
        ]
        theta, probes = self.layers.trial()
        stats, cache, self.cache, self.plain_reason = vars(self.stats).copy(), self.cache, NoPrefixCache(), None
        # LLM.int8() rounds what goes into a product to 8 bits, where another order of operations may tip the scales.
        rounds = any(parameter.dtype == torch.int8 for parameter in self.model.parameters())
        tolerance = 5e-2 if rounds or self.model.dtype != torch.float32 else 1e-4
        try:
            slow = self.plain.score(theta, probes, batch).log_probs
            for pieces in (False, True):
                self.head.max_logits, self.head.is_last = 1, pieces
                fast = self.score(theta, probes, batch).log_probs
                agrees = np.allclose(np.nan_to_num(fast), np.nan_to_num(slow), rtol=tolerance, atol=tolerance)
                if not pieces and not agrees:
                    return f"{type(self.model).__name__} does not score the same with a mask and cache from outside"
            self.head.is_last = agrees
        except Exception as error:  # whatever a model's own code raises over arguments it does not know
            return f"{type(self.model).__name__} does not take a mask and cache from outside ({error})"
        finally:
            vars(self.stats).update(stats)
            self.cache, self.layers.active, self.head.max_logits = cache, True, MAX_LOGITS
            self.head.pick(None)
        return None


def _by_length(batch: Sequence[Example], suffixes: list[Suffix]) -> list[int]:
    """Examples, those with the longest prompts first."""
    return sorted(range(len(batch)), key=lambda i: (len(batch[i].prompt), len(suffixes[i].tokens)), reverse=True)


def _add(values: torch.Tensor, rows: list[int], suffixes: list[Suffix], scores: np.ndarray) -> None:
    """Add values [probe, target] of the candidates' tokens to scores [probe, example, candidate]."""
    examples = np.array([(i, c) for i in rows for c, _, _ in suffixes[i].targets])
    for probe_values, probe_scores in zip(values.cpu().numpy(), scores, strict=True):
        np.add.at(probe_scores, (examples[:, 0], examples[:, 1]), probe_values)


def _scores(rows: list[int], suffixes: list[Suffix], batch: Sequence[Example], values: torch.Tensor) -> Scores:
    num_tokens, log_probs = empty_scores(1, batch)
    _add(values[None], rows, suffixes, log_probs)
    return Scores(log_probs, num_tokens)


def _tokens_needed(batch: Sequence[Example]) -> int:
    """What the plain engine would compute for one probe: every row whole."""
    return sum(
        len(example.prompt) + len(example.invocation) + len(start)
        for example in batch
        for start in {candidate[:-1] for candidate in example.candidates}
    )


def _common_prefix(sequences: Sequence[TokenIds]) -> int:
    """How many tokens all sequences begin with, leaving each at least one of its own."""
    shortest = min(map(len, sequences)) - 1
    for index in range(shortest):
        if len({sequence[index] for sequence in sequences}) > 1:
            return index
    return max(0, shortest)
