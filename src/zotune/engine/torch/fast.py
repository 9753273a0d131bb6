"""The fast engine on transformers models: every number of the plain engine, with fewer tokens computed.

In scope `activated` prompts are base-model KV from the prefix cache (`activated.py`). In scope `everywhere` what all
prompts of a batch begin with is computed once per probe (`everywhere.py`). In both, a prompt is computed once for all
candidates that follow it, and only scored positions reach the LM head.
"""

import logging
from collections.abc import Sequence
from functools import partial

import torch
from transformers import PreTrainedModel

from zotune.adapter.spec import AdapterSpec
from zotune.engine.scores import empty_scores
from zotune.engine.torch.activated import Activated
from zotune.engine.torch.backward import scores_and_gradient
from zotune.engine.torch.everywhere import Everywhere
from zotune.engine.torch.head import ScoredHead
from zotune.engine.torch.plain import PlainEngine
from zotune.engine.torch.prefix_cache import NoPrefixCache, PrefixCache
from zotune.engine.torch.suffix_passes import SuffixPasses, tokens_needed
from zotune.engine.torch.tangents import score_with_tangents
from zotune.engine.torch.trial import why_plain
from zotune.engine.torch.weights import ModelWeights
from zotune.zo.protocol import AT_THETA, Cotangents, Example, Need, Probe, Sampling, Scores, Theta, TokenIds

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
        self._window = getattr(model.config.get_text_config(), "sliding_window", None)
        self.head = ScoredHead(model)
        self.passes = SuffixPasses(model, self.layers, self.head, self.stats, max_tokens_per_forward)
        self.activated, self.everywhere = Activated(self.passes, NoPrefixCache()), Everywhere(self.passes)
        self.plain_reason: str | None = None
        self.plain_reason = why_plain(self.plain, self.head, self.score)
        self.cache = prefix_cache or NoPrefixCache()
        if self.plain_reason:
            logger.info("every token will be computed, without reuse: %s", self.plain_reason)

    @property
    def cache(self) -> PrefixCache:
        """Where prompts are kept."""
        return self.activated.cache

    @cache.setter
    def cache(self, cache: PrefixCache) -> None:
        self.activated.cache = cache

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

    def gradient(self, theta: Theta, batch: Sequence[Example], cotangents: Cotangents) -> tuple[Scores, Theta]:
        """By backpropagation: in scope activated through the suffixes alone, since prompts do not change with theta."""
        if self.plain_reason or self.scope == "everywhere" or not self._fits(batch):
            return self.plain.gradient(theta, batch, cotangents)
        score = partial(self.score, theta, [AT_THETA], batch)
        return scores_and_gradient(self.model, self.layers, theta, self.activated.parts(batch), score, cotangents)

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

    def _fits(self, batch: Sequence[Example]) -> bool:
        """Whether the layout serves these examples; it needs a token to compute, and full attention."""
        longest = max(len(e.prompt) + len(e.invocation) + max(map(len, e.candidates)) for e in batch)
        trunk = min(len(e.invocation if self.scope == "activated" else e.prompt + e.invocation) for e in batch)
        return trunk > 0 and not (self._window and longest > self._window)
