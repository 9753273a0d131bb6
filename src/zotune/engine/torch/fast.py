"""The fast engine on transformers models: every number of the plain engine, with fewer tokens computed.

In scope `activated` prompts are base-model KV from the prefix cache (`activated.py`). In scope `everywhere` what all
prompts of a batch begin with is computed once per probe (`everywhere.py`). In both, a prompt is computed once for all
candidates that follow it, and only scored positions reach the LM head.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel

from zotune.adapter.spec import AdapterSpec
from zotune.engine.scores import empty_scores
from zotune.engine.torch.activated import Activated
from zotune.engine.torch.backward import Part, scores_and_gradient
from zotune.engine.torch.everywhere import Everywhere
from zotune.engine.torch.fast_generation import FastGeneration
from zotune.engine.torch.head import MAX_LOGITS, ScoredHead
from zotune.engine.torch.lens_gradient import Watch, scores_and_lens_gradient
from zotune.engine.torch.limits import length_limit
from zotune.engine.torch.lora import LoraLayers
from zotune.engine.torch.plain import PlainEngine
from zotune.engine.torch.prefix_cache import NoPrefixCache, PrefixCache
from zotune.engine.torch.suffix_passes import SuffixPasses, tokens_needed
from zotune.engine.torch.tangents import score_with_tangents
from zotune.engine.torch.trial import BLOCK, KEPT_BYTES, Trial, agree, same
from zotune.engine.torch.weights import ModelWeights
from zotune.errors import first_line
from zotune.zo.protocol import AT_THETA, Cotangents, Example, Need, Probe, Sampling, Scores, Theta, TokenIds

logger = logging.getLogger("zotune")


class TorchEngine:
    """Scores probes of an adapter, or of all parameters, on a causal LM of transformers, on CPU or CUDA.

    Models whose attention does not take a mask and a cache from outside (found by a trial at the start) go through the
    plain engine, and the log says so. So do examples that are longer than a window or another limit of the model's
    (`limits.py`), one by one, and derivatives, where they alone come out otherwise.

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
        self.scope = self.plain.scope
        self.stats = self.plain.stats
        self.layers = self.plain.layers
        self._limit = length_limit(model.config)
        self.head = ScoredHead(model, fixed=spec is not None)
        self.passes = SuffixPasses(model, self.layers, self.head, self.stats, max_tokens_per_forward)
        self.activated, self.everywhere = (
            Activated(self.passes, PrefixCache(KEPT_BYTES, BLOCK)),
            Everywhere(self.passes),
        )
        self.generation = FastGeneration(self.plain, self.passes, self.activated.prompts, self.in_float32)
        self.plain_tangents: bool | None = None  # whether derivatives alone are the plain engine's; found when asked
        self.plain_reason: str | None = None
        self.activated.prompts.same_in_company = True  # the trial is about more than the last bits
        self.plain_reason = self._why_plain()
        self.activated.prompts.same_in_company = None
        self.cache = prefix_cache or NoPrefixCache()
        if self.plain_reason:
            logger.info("every token will be computed, without reuse: %s", self.plain_reason)

    @property
    def cache(self) -> PrefixCache:
        """Where prompts are kept."""
        return self.activated.prompts.cache

    @cache.setter
    def cache(self, cache: PrefixCache) -> None:
        self.activated.prompts.cache = cache

    @property
    def spec(self) -> AdapterSpec | None:
        return self.plain.spec

    @property
    def weights(self) -> ModelWeights | None:
        return self.plain.weights

    @property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        return self.plain.tensor_shapes

    def identity(self) -> str | None:
        return self.plain.identity()

    @torch.inference_mode()
    def score(self, theta: Theta, probes: Sequence[Probe], batch: Sequence[Example], normalized: bool = True) -> Scores:
        fits = [self._fits(example) for example in batch]
        tangents = any(probe.derivative for probe in probes)
        if tangents and self.plain_tangents is None and not self.plain_reason:
            self._try_tangents()
        if self.plain_reason or not any(fits) or (tangents and self.plain_tangents):
            return self.plain.score(theta, probes, batch)
        if not all(fits):
            return self._score_apart(theta, probes, batch, fits)
        self._set_normalized(normalized, batch)
        if tangents:
            return score_with_tangents(self.activated, self.scope == "everywhere", theta, probes, batch)
        num_tokens, log_probs = empty_scores(len(probes), batch)
        needed, before = tokens_needed(batch) * len(probes), self.stats.tokens_computed
        score_some = self.activated.score if self.scope == "activated" else self.everywhere.score
        longest = max(len(example.invocation) + max(map(len, example.candidates)) for example in batch)
        most = self.layers.max_probes or max(1, self.passes.max_tokens // longest)
        for start in range(0, len(probes), most):
            some = probes[start : start + most]
            self.layers.place(theta, some)
            score_some(len(some), batch, log_probs[start : start + most])
        self.stats.tokens_reused += needed - (self.stats.tokens_computed - before)
        return Scores(log_probs, num_tokens)

    def _set_normalized(self, normalized: bool, batch: Sequence[Example]) -> None:
        """A normalizer that all candidates share is one of their only tokens' place."""
        self.head.normalized = normalized or any(len(tokens) > 1 for e in batch for tokens in e.candidates)

    def in_float32(self) -> AbstractContextManager[None] | None:
        inside = self.plain.in_float32()
        return None if inside is None else self._in_float32(inside)

    @contextmanager
    def _in_float32(self, inside: AbstractContextManager[None]) -> Iterator[None]:
        cache = self.cache
        self.cache, self.passes.dtype = PrefixCache(KEPT_BYTES, cache.block), torch.float32
        try:
            with inside:
                yield
        finally:
            self.cache, self.passes.dtype = cache, self.model.dtype

    def gradient(
        self, theta: Theta, batch: Sequence[Example], cotangents: Cotangents, normalized: bool = True
    ) -> tuple[Scores, Theta]:
        """By backpropagation: in scope activated through the suffixes alone, since prompts do not change with theta."""
        if self.scope == "everywhere" or self.plain_reason or not all(map(self._fits, batch)):
            return self.plain.gradient(theta, batch, cotangents)
        self._set_normalized(normalized, batch)
        score = partial(self.score, theta, [AT_THETA], batch, normalized)
        return scores_and_gradient(self.model, self.layers, theta, self.activated.parts(batch), score, cotangents)

    def lens_gradient(
        self, theta: Theta, batch: Sequence[Example], cotangents: Cotangents, normalized: bool = True
    ) -> tuple[Scores, Theta]:
        return scores_and_lens_gradient(*self.watched(batch, normalized), batch, theta, cotangents)

    def watched(self, batch: Sequence[Example], normalized: bool = True) -> tuple[Watch, list[Part]]:
        """The passes of a batch, and what sees what they do."""
        if self.plain_reason or not all(map(self._fits, batch)):
            return self.plain.watched(batch)
        assert isinstance(self.layers, LoraLayers)
        self._set_normalized(normalized, batch)
        watch = Watch(self.model, self.layers, self.head.picked, self.passes.stream)
        return watch, (self.activated if self.scope == "activated" else self.everywhere).parts(batch)

    def why_not(self, need: Need) -> str | None:
        return self.plain.why_not(need)

    def generate(
        self, theta: Theta, probes: Sequence[Probe], prompts: Sequence[Example], sampling: Sampling
    ) -> list[list[TokenIds]]:
        generate = self.plain.generate if self.plain_reason else self.generation.generate
        return generate(theta, probes, prompts, sampling)

    def peak_memory_bytes(self) -> int:
        return self.plain.peak_memory_bytes()

    def close(self) -> None:
        self.head.remove()
        self.passes.stream.remove()
        self.plain.close()

    def _fits(self, example: Example) -> bool:
        """Whether the layout serves this example; it needs a token to compute, and attention to all before it."""
        longest = len(example.prompt) + len(example.invocation) + max(map(len, example.candidates))
        trunk = example.invocation if self.scope == "activated" else example.prompt + example.invocation
        return len(trunk) > 0 and not (self._limit and longest > self._limit)

    def _score_apart(self, theta: Theta, probes: Sequence[Probe], batch: Sequence[Example], fits: list[bool]) -> Scores:
        """The examples that fit here, the others by the plain engine."""
        num_tokens, log_probs = empty_scores(len(probes), batch)
        tangents = np.zeros_like(log_probs) if any(probe.derivative for probe in probes) else None
        for engine, own in ((self, True), (self.plain, False)):
            which = [index for index, fit in enumerate(fits) if fit is own]
            scores = engine.score(theta, probes, [batch[index] for index in which])
            count = scores.num_tokens.shape[1]
            log_probs[:, which, :count] = scores.log_probs
            if tangents is not None:
                tangents[:, which, :count] = scores.tangents
        return Scores(log_probs, num_tokens, tangents)

    def _why_plain(self) -> str | None:
        """Why this model must go through the plain engine, or None; afterwards the head is set as it wants it."""
        name, stats = type(self.model).__name__, vars(self.stats).copy()
        trial = Trial.of(self.model, self.layers, self.spec)
        if not all(map(self._fits, trial.batch)):
            return f"{name} treats sequences of more than {self._limit} tokens otherwise"
        try:
            slow = self.plain.score(trial.theta, trial.probes, trial.batch)
            for pieces in (False, True):
                self.head.max_logits, self.head.is_last = 1, pieces
                agrees = self._agrees(trial, slow)
                if not pieces and (not agrees or self._differs_in_float32(trial)):
                    return f"{name} does not score the same with a mask and cache from outside"
            self.head.is_last = agrees
        except Exception as error:  # whatever a model's own code raises over arguments it does not know
            return f"{name} does not take a mask and cache from outside ({first_line(error)})"
        finally:
            vars(self.stats).update(stats)
            self.layers.active, self.head.max_logits = True, MAX_LOGITS
            self.head.pick(None)
        return None

    def _agrees(self, trial: Trial, slow: Scores) -> bool:
        """With the residual stream in float32, or else as the model has it."""
        stream = self.passes.stream
        if stream.possible:
            try:
                if agree(self.model, self.score(trial.theta, trial.probes, trial.batch), slow, self.plain.noise):
                    return True
            except Exception:  # whatever a model's own code raises over a dtype that it does not expect
                self.layers.active = True
            stream.possible, self.cache = False, PrefixCache(KEPT_BYTES, BLOCK)
        return agree(self.model, self.score(trial.theta, trial.probes, trial.batch), slow, self.plain.noise)

    def _differs_in_float32(self, trial: Trial) -> bool:
        """Whether a model of half precision scores otherwise than in padded rows for another reason than rounding."""
        try:
            inside = self.in_float32()
            if inside is None:
                return False
            probes = trial.probes[-1:] if self.spec else trial.probes[:1]  # all parameters are moved in their precision
            with inside:
                slow = self.plain.padded_float32 or self.plain.score(trial.theta, probes, trial.batch)
                return not same(self.score(trial.theta, probes, trial.batch), slow)
        except Exception:  # whatever a model's own code raises over a dtype that it does not expect
            return False
        finally:
            self.layers.active = True
            self.head.pick(None)

    def _try_tangents(self) -> None:
        """Sets `plain_tangents`."""
        stats, cache = vars(self.stats).copy(), self.cache
        trial = Trial.of(self.model, self.layers, self.spec)
        probes = [Probe(seed, 0.0, derivative=True) for seed in (2, 3)]
        self.cache, self.plain_tangents = PrefixCache(KEPT_BYTES, BLOCK), True
        slow = self.score(trial.theta, probes, trial.batch)
        try:
            self.plain_tangents = False
            self.plain_tangents = not agree(self.model, self.score(trial.theta, probes, trial.batch), slow)
        except Exception:  # whatever a model's own code raises
            self.plain_tangents = True
        finally:
            vars(self.stats).update(stats)
            self.cache, self.layers.active = cache, True
            self.head.pick(None)
        if self.plain_tangents:
            logger.info(
                "derivatives will be computed without reuse: those of %s come out otherwise with a mask and cache from "
                "outside", type(self.model).__name__,
            )  # fmt: skip
