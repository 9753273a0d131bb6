"""Generation in the fast engine: many rows at once where that gives what the plain engine gives, else by that engine.

Whether it does is tried when texts are first asked for: those of a small batch must have, token by token, the
log-probabilities that the plain engine's scores give them. Models whose own settings for generation change logits, as a
repetition penalty does, and prompts that reach a limit of the model's attention are the plain engine's, too.
"""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch

from zotune.engine.torch.decoding import Decoding
from zotune.engine.torch.limits import length_limit
from zotune.engine.torch.plain import PlainEngine
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.engine.torch.prompts import Prompts
from zotune.engine.torch.suffix_passes import SuffixPasses
from zotune.engine.torch.token_choice import TokenChoice
from zotune.engine.torch.trial import BLOCK, KEPT_BYTES, Trial, agree, same
from zotune.errors import first_line
from zotune.zo.protocol import Example, Probe, Sampling, Scores, Theta, TokenIds

logger = logging.getLogger("zotune")

NUM_TRIED = 4  # tokens of each text of the trial


class FastGeneration:
    """Texts of one engine.

    Args:
        in_float32: inside, passes are in float32; gives None where they cannot be, or are.
    """

    def __init__(
        self,
        plain: PlainEngine,
        passes: SuffixPasses,
        prompts: Prompts,
        in_float32: Callable[[], AbstractContextManager[None] | None],
    ) -> None:
        self.plain = plain
        self.passes = passes
        self.prompts = prompts
        self.decoding = Decoding(passes, prompts if plain.scope == "activated" else None)
        self.plain_reason: str | None = None
        self._in_float32 = in_float32
        self._tried = False
        self._limit = length_limit(plain.model.config)

    @torch.inference_mode()
    def generate(
        self, theta: Theta, probes: Sequence[Probe], prompts: Sequence[Example], sampling: Sampling
    ) -> list[list[TokenIds]]:
        if not prompts or not probes:
            return [[] for _ in probes]
        if not self._tried:
            self._try_out()
        fits = [self._fits(example, sampling.max_new_tokens) for example in prompts]
        if self.plain_reason or self._settings_change_logits() or not any(fits):
            return self.plain.generate(theta, probes, prompts, sampling)
        if not all(fits):
            return self._generate_apart(theta, probes, prompts, sampling, fits)
        choice = TokenChoice(sampling, sampling.row_seeds(len(prompts)))
        return self._texts(theta, probes, prompts, choice)

    def _texts(
        self, theta: Theta, probes: Sequence[Probe], prompts: Sequence[Example], choice: TokenChoice
    ) -> list[list[TokenIds]]:
        layers = self.passes.layers
        most = layers.max_probes or self.decoding.max_probes(prompts, choice.sampling.max_new_tokens)
        texts = []
        for start in range(0, len(probes), most):
            some = probes[start : start + most]
            layers.place(theta, some)
            texts += self.decoding.texts(len(some), prompts, choice)
        return texts

    def _generate_apart(
        self, theta: Theta, probes: Sequence[Probe], prompts: Sequence[Example], sampling: Sampling, fits: list[bool]
    ) -> list[list[TokenIds]]:
        """The prompts that fit here, the others by the plain engine."""
        texts: list[list[TokenIds]] = [[()] * len(prompts) for _ in probes]
        for generate, own in ((self.generate, True), (self.plain.generate, False)):
            which = [index for index, fit in enumerate(fits) if fit is own]
            some = generate(theta, probes, [prompts[i] for i in which], sampling.of(which, len(prompts)))
            for of_probe, found in zip(texts, some, strict=True):
                for index, tokens in zip(which, found, strict=True):
                    of_probe[index] = tokens
        return texts

    def _fits(self, example: Example, num_new: int) -> bool:
        count = len(example.prompt) + len(example.invocation)
        return count > 0 and not (self._limit and count + num_new > self._limit)

    def _settings_change_logits(self) -> bool:
        """Whether the model's own settings for generation do more than choose and end."""
        settings = self.plain.model.generation_config.to_diff_dict()
        return any(value is not None and name not in _HARMLESS for name, value in settings.items())

    def _try_out(self) -> None:
        """Sets `plain_reason`."""
        self._tried = True
        stats, cache, same_in_company = vars(self.plain.stats).copy(), self.prompts.cache, self.prompts.same_in_company
        name = type(self.plain.model).__name__
        try:
            if not self._agrees() or self._differs_in_float32():
                self.plain_reason = f"those of {name} come out otherwise when rows go on together"
        except Exception as error:  # whatever a model's own code raises over arguments it does not know
            self.plain_reason = f"{name} does not go on with many rows at once ({first_line(error)})"
        finally:
            vars(self.plain.stats).update(stats)
            self.prompts.cache, self.prompts.same_in_company = cache, same_in_company
            self.passes.layers.active = True
            self.passes.head.pick(None)
        if self.plain_reason:
            logger.info("texts will be generated one probe after the other: %s", self.plain_reason)

    def _agrees(self, exact: bool = False) -> bool:
        """Whether texts of a small batch have the log-probabilities of the plain engine.

        Args:
            exact: but for the rounding of float32.
        """
        self.prompts.cache, self.prompts.same_in_company = PrefixCache(KEPT_BYTES, BLOCK), True
        trial = Trial.of(self.plain.model, self.passes.layers, self.plain.spec)
        probes = trial.probes[-(self.passes.layers.max_probes or len(trial.probes)) :]
        if not all(self._fits(example, NUM_TRIED) for example in trial.batch):
            return False
        watched = _Watched(len(probes), len(trial.batch))
        texts = self._texts(trial.theta, probes, trial.batch, watched)
        wanted = []
        for index, probe in enumerate(probes):
            batch = [
                replace(example, candidates=(text,)) for example, text in zip(trial.batch, texts[index], strict=True)
            ]
            scores = self.plain.score(trial.theta, [probe], batch)
            wanted.append(scores.log_probs)
            num_tokens = scores.num_tokens
        want = Scores(np.concatenate(wanted), num_tokens)
        found = Scores(watched.log_probs[:, :, None], num_tokens)
        return (
            same(found, want)
            if exact
            else agree(self.plain.model, found, want, self.plain.noise, False, watched.spread)
        )

    def _differs_in_float32(self) -> bool:
        """Whether a model of half precision goes on otherwise for another reason than rounding."""
        try:
            inside = self._in_float32()
            if inside is None:
                return False
            with inside:
                return not self._agrees(exact=True)
        except Exception:  # whatever a model's own code raises over a dtype that it does not expect
            return False
        finally:
            self.passes.layers.active = True
            self.passes.head.pick(None)


class _Watched(TokenChoice):
    """Chooses greedily, and adds up the log-probabilities of what it chose: float32 [probe, prompt]."""

    def __init__(self, num_probes: int, num_prompts: int) -> None:
        super().__init__(Sampling(NUM_TRIED), [0] * num_prompts)
        self.log_probs = np.zeros((num_probes, num_prompts), dtype=np.float32)
        self._variances: list[float] = []

    @property
    def spread(self) -> float:
        """The standard deviation of the log-probability of a text, were its tokens any ones."""
        return math.sqrt(sum(self._variances))

    def tokens(
        self, logits: torch.Tensor, probes: np.ndarray, prompts: np.ndarray, place: int | np.ndarray
    ) -> np.ndarray:
        chosen = super().tokens(logits, probes, prompts, place)
        log_probs = torch.log_softmax(logits.float(), dim=-1).cpu().numpy()
        self.log_probs[probes, prompts] += log_probs[np.arange(len(chosen)), chosen]
        self._variances.append(float(np.var(log_probs, axis=-1).mean()))
        return chosen


_HARMLESS = {  # what is not about logits, or only where transformers samples
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "max_length", "max_new_tokens",
    "use_cache", "cache_implementation", "cache_config", "return_dict_in_generate", "output_attentions",
    "output_hidden_states", "output_scores", "output_logits", "transformers_version", "_from_model_config", "do_sample",
    "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "num_return_sequences",
}  # fmt: skip
