"""The plain engine: transformers' own forward pass, one probe at a time, every token computed.

Models that score otherwise with padding (found by a trial at the start) get one row at a time, without any. Nothing is
kept between calls. This form is the measure of correctness for every faster one.
"""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel

from zotune.adapter.spec import AdapterSpec, PromptSpec
from zotune.engine.memory import peak_resident_bytes
from zotune.engine.scores import empty_scores
from zotune.engine.torch.abilities import why_no_gradients, why_no_tangents
from zotune.engine.torch.backward import Part, scores_and_gradient
from zotune.engine.torch.forward_mode import differentiable, values_and_tangents
from zotune.engine.torch.generation import generate_texts
from zotune.engine.torch.identity import weights_identity
from zotune.engine.torch.layers import TrainedLayers
from zotune.engine.torch.lens_gradient import Watch, scores_and_lens_gradient, why_no_lens
from zotune.engine.torch.limits import length_limit
from zotune.engine.torch.loading import context_length
from zotune.engine.torch.lora import LoraLayers
from zotune.engine.torch.masked import PlainMaskedPasses
from zotune.engine.torch.model_kind import sees_all
from zotune.engine.torch.plain_passes import PlainPasses
from zotune.engine.torch.precision import in_float32, is_half
from zotune.engine.torch.rows import Row, pack_rows, put, scores_of, tokens_of
from zotune.engine.torch.soft_prompt import SoftPrompt
from zotune.engine.torch.trial import (
    LONGER,
    MOST_TRIED,
    TIMES_DRAWN,
    Trial,
    agree,
    distance,
    generator_state,
    same,
    sees_later_tokens,
)
from zotune.engine.torch.weights import ModelWeights
from zotune.engine.torch.whole_model import WholeModel
from zotune.errors import InputError, first_line
from zotune.zo.protocol import (
    AT_THETA,
    Cotangents,
    EngineStats,
    Example,
    Need,
    Probe,
    Sampling,
    Scores,
    Theta,
    TokenIds,
)

logger = logging.getLogger("zotune")


class PlainEngine:
    """Scores probes of an adapter, or of all parameters, on a causal or masked LM of transformers, on CPU or CUDA.

    Args:
        model: the base model; it is in evaluation mode and has forward hooks until `close`.
        spec: the form of the adapter, LoRA or a soft prompt; None: theta is the model's own parameters.
        max_tokens_per_forward: rows are packed into forward passes of at most this many tokens, padding included.

    Raises:
        InputError: the model cannot be scored, or is of neither kind.
    """

    def __init__(self, model: PreTrainedModel, spec: AdapterSpec | None, max_tokens_per_forward: int = 4096) -> None:
        self._modes = [(module, module.training) for module in model.modules()]
        self.model = model.eval()
        self.max_tokens_per_forward = max_tokens_per_forward
        self.stats = EngineStats()
        self.layers = _trained_layers(model, spec)
        self._spec = spec
        self.scope = "everywhere" if spec is None else spec.scope
        self._identity = weights_identity(model)  # now: training moves weights, and passes lay quantised ones out
        self._masked = sees_all(model)
        passes = PlainMaskedPasses if self._masked else PlainPasses
        self.passes = passes(model, self.layers, self.stats, self.scope == "activated")
        self._limit = None if self._masked else length_limit(model.config)
        self._causal_beyond = False  # the limit; not known before there is a row
        self.alone_above: int | None = 0  # tokens; longer rows go through the model one at a time, without padding
        self.padded_float32: Scores | None = None  # of the trial's last probe, of a model of half precision
        self.noise = 0.0  # how far two right ways of scoring are apart here, in nats
        self._generates_whole_rows: bool | None = None  # not known before somebody asks for texts
        try:
            self._try_out()
        except BaseException:
            self.close()
            raise

    @property
    def spec(self) -> AdapterSpec | None:
        """The form of the adapter; None: theta is the model's own parameters."""
        return self.layers.spec if isinstance(self.layers, LoraLayers | SoftPrompt) else self._spec

    @property
    def weights(self) -> ModelWeights | None:
        """Theta itself, where it is the model's own parameters."""
        return self.layers.weights if isinstance(self.layers, WholeModel) else None

    @property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(self.layers.shapes)

    def identity(self) -> str | None:
        return self._identity

    @torch.inference_mode()
    def score(self, theta: Theta, probes: Sequence[Probe], batch: Sequence[Example], normalized: bool = True) -> Scores:
        num_tokens, log_probs = empty_scores(len(probes), batch)
        forwards = self._forwards(batch)
        if any(probe.derivative for probe in probes):
            return Scores(log_probs, num_tokens, self._tangents(theta, probes, forwards, batch, log_probs))
        for probe_scores, probe in zip(log_probs, probes, strict=True):
            self.layers.place(theta, [probe])
            for rows in forwards:
                put(self.passes.log_probs(rows, batch), rows, batch, probe_scores)
        return Scores(log_probs, num_tokens)

    def _tangents(
        self, theta: Theta, probes: Sequence[Probe], forwards: list[list[Row]], batch: Sequence[Example],
        log_probs: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """Derivatives [probe, example, candidate], one direction at a time; fills `log_probs` too."""
        tangents, before = np.zeros_like(log_probs), self.stats.tokens_computed
        with differentiable(self.model):
            for index, probe in enumerate(probes):
                assert isinstance(self.layers, LoraLayers)
                for rows in forwards:
                    values, (moved,) = values_and_tangents(
                        self.layers, theta, [probe], partial(self.passes.log_probs, rows, batch)
                    )
                    put(values, rows, batch, log_probs[index])
                    put(moved, rows, batch, tangents[index])
        self.stats.tokens_computed += self.stats.tokens_computed - before  # each token's tangent
        return tangents

    def why_not(self, need: Need) -> str | None:
        if need == "generations" and self._masked:
            return f"{type(self.model).__name__} fills in masks, and writes no texts"
        if need == "tangents":
            return why_no_tangents(self.model, self.layers, self)
        if need == "lens":
            return why_no_lens(self.layers)
        return why_no_gradients(self.model, self.layers, self) if need == "gradients" else None

    def in_float32(self) -> AbstractContextManager[None] | None:
        return in_float32(self.model) if is_half(self.model) else None

    def gradient(
        self, theta: Theta, batch: Sequence[Example], cotangents: Cotangents, normalized: bool = True
    ) -> tuple[Scores, Theta]:
        """By backpropagation over whole sequences."""
        score = partial(self.score, theta, [AT_THETA], batch)
        return scores_and_gradient(self.model, self.layers, theta, self.parts(batch), score, cotangents)

    def lens_gradient(
        self, theta: Theta, batch: Sequence[Example], cotangents: Cotangents, normalized: bool = True
    ) -> tuple[Scores, Theta]:
        return scores_and_lens_gradient(*self.watched(batch), batch, theta, cotangents)

    def watched(self, batch: Sequence[Example]) -> tuple[Watch, list[Part]]:
        """The passes of a batch, and what sees what they do."""
        assert isinstance(self.layers, LoraLayers)
        return Watch(self.model, self.layers, lambda: self.passes.scored), self.parts(batch)

    def parts(self, batch: Sequence[Example]) -> list[Part]:
        """The passes of a gradient: over whole sequences."""
        return [
            Part(
                partial(self.passes.log_probs, rows, batch),
                np.array([(row.example, c) for row in rows for c in row.candidates for _ in tokens_of(row, c, batch)]),
                partial(scores_of, rows, batch),
            )
            for rows in self._forwards(batch)
        ]

    @torch.inference_mode()
    def generate(
        self, theta: Theta, probes: Sequence[Probe], prompts: Sequence[Example], sampling: Sampling
    ) -> list[list[TokenIds]]:
        if self._generates_whole_rows is None:
            self._try_to_generate()
        rows = [Row(i, e.prompt + e.invocation, len(e.invocation), ()) for i, e in enumerate(prompts)]
        alone_above = 0 if self._generates_whole_rows else self.alone_above
        seeds = sampling.row_seeds(len(prompts))
        results: list[list[TokenIds]] = []
        for probe in probes:
            self.layers.place(theta, [probe])
            texts: list[TokenIds] = [()] * len(prompts)
            for pack in pack_rows(rows, self.max_tokens_per_forward, sampling.max_new_tokens, alone_above):
                whole = bool(self._generates_whole_rows)
                of_rows = [seeds[row.example] for row in pack]
                found = generate_texts(
                    self.model, self.passes.inputs(pack), sampling, of_rows, self.layers, self.stats, whole
                )
                for row, token_ids in zip(pack, found, strict=True):
                    texts[row.example] = token_ids
            results.append(texts)
        return results

    def _try_to_generate(self) -> None:
        """Sets `_generates_whole_rows`: whether rows with a cache and padding go on with less likely tokens."""
        stats = vars(self.stats).copy()
        trial = Trial.of(self.model, self.layers, self.spec)
        batch = trial.longer(self._limit) if self._limit and self._limit <= MOST_TRIED else trial.batch
        likely = []
        for whole in (True, False):
            self._generates_whole_rows = whole
            try:
                ((*texts,),) = self.generate(trial.theta, trial.probes[-1:], batch, Sampling(3))
            except Exception:  # whatever a model's own code raises over padding and caches
                if whole:
                    raise
                likely.append(-np.inf)
                continue
            found = [replace(example, candidates=(tokens,)) for example, tokens in zip(batch, texts, strict=True)]
            likely.append(float(self.score(trial.theta, trial.probes[-1:], found).log_probs.sum()))
        self._generates_whole_rows = likely[1] < likely[0] - max(1e-3, 3 * self.noise * len(batch))
        vars(self.stats).update(stats)

    def peak_memory_bytes(self) -> int:
        if self.model.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.model.device)
        return peak_resident_bytes()

    def close(self) -> None:
        self.layers.remove()
        for module, training in self._modes:
            module.training = training

    def _try_out(self) -> None:
        """Find out which rows may be padded; sets `alone_above` and `noise`."""
        name, stats = type(self.model).__name__, vars(self.stats).copy()
        trial = Trial.of(self.model, self.layers, self.spec)
        theta, probes, batch = trial.theta, trial.probes[-1:], trial.batch
        try:
            self.layers.settle(lambda: self.score(theta, probes, batch[:1]))
            before = generator_state(self.model.device)
            reference = self.score(theta, probes, batch)
            draws = not torch.equal(generator_state(self.model.device), before)
        except InputError:
            raise
        except Exception as error:  # whatever a model's own code raises
            raise InputError(f"--model: {name} does not compute scores here ({first_line(error)})") from error
        first = Scores(reference.log_probs[:, :1], reference.num_tokens[:1])
        exact, times = self.model.device.type == "cpu", TIMES_DRAWN if draws else 1
        if not all(agree(self.model, self.score(theta, probes, batch[:1]), first, exact=exact) for _ in range(times)):
            raise InputError(f"--model: {name} scores the same text differently each time; zotune cannot train it")
        if not self._masked and sees_later_tokens(self.model, self.layers, batch[0].prompt, len(batch[0].prompt) - 1):
            raise InputError(
                f"--model: {name} lets tokens see later ones, as encoders do; zotune needs a causal model, or a masked "
                "one with its head (AutoModelForMaskedLM)"
            )
        self.alone_above = None
        padded = self._tried(theta, probes, batch)
        limit, context = self._limit, context_length(self.model.config)
        if padded is None or not agree(self.model, padded, reference) or self._differ_in_float32(trial):
            self.alone_above = 0
            logger.info("rows go through the model one at a time: %s does not score the same with padding", name)
        else:
            self.noise = max(self.noise, distance(padded, reference))
            if limit and (context is None or context > limit + LONGER):
                self.alone_above = limit
                if limit <= MOST_TRIED:
                    long = trial.longer(limit)
                    alone = self._tried(theta, probes, long)
                    self.alone_above = None
                    padded = self._tried(theta, probes, long)
                    if padded is None or alone is None or not agree(self.model, padded, alone, self.noise):
                        self.alone_above = limit
        vars(self.stats).update(stats)

    def _differ_in_float32(self, trial: Trial) -> bool:
        """Whether padded rows of a model of half precision score otherwise for another reason than rounding; `noise` is
        set to what rounding does."""
        probes = trial.probes[-1:] if self.spec else trial.probes[:1]  # a probe of all parameters is in their precision
        try:
            inside = self.in_float32()
            if inside is None:
                return False
            with inside:
                padded = self.score(trial.theta, probes, trial.batch)
                alone = self.score(trial.theta, probes, trial.batch[1:])  # the shorter one, alone in its row
            if not same(Scores(padded.log_probs[:, 1:], padded.num_tokens[1:]), alone):
                return True
            self.padded_float32 = padded
            # Of a masked model's head in half precision more than texts of rare tokens differ by.
            self.noise = distance(self.score(trial.theta, probes, trial.batch), padded)
            return False
        except Exception:  # whatever a model's own code raises over a dtype that it does not expect
            return False

    def _tried(self, theta: Theta, probes: Sequence[Probe], batch: Sequence[Example]) -> Scores | None:
        try:
            return self.score(theta, probes, batch)
        except Exception:  # whatever a model's own code raises over padding
            return None

    @property
    def alone(self) -> bool:
        """Whether all rows go through the model one at a time."""
        return self.alone_above == 0

    def _forwards(self, batch: Sequence[Example]) -> list[list[Row]]:
        rows = self.passes.rows(batch)
        longest = max(rows, key=lambda row: len(row.input_ids)).input_ids
        if self._limit and len(longest) > self._limit and not self._causal_beyond:
            if sees_later_tokens(self.model, self.layers, longest, self._limit + 1):
                name = type(self.model).__name__
                raise InputError(
                    f"--max-length: in sequences of more than {self._limit} tokens, {name} lets tokens see later ones; "
                    f"use --max-length {self._limit}"
                )
            self._causal_beyond = True
        return list(pack_rows(rows, self.max_tokens_per_forward, 0, self.alone_above))


def _trained_layers(model: PreTrainedModel, spec: AdapterSpec | None) -> TrainedLayers:
    if spec is None:
        return WholeModel(model)
    return SoftPrompt(model, spec) if isinstance(spec, PromptSpec) else LoraLayers(model, spec)
