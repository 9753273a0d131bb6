"""The plain engine: transformers' own forward pass, one probe at a time, every token computed.

A row is prompt + invocation + candidate without its last token; candidates that differ only in their last token
share a row. Rows are left-padded, so that the scored positions are the last ones and only they reach the LM head.
Nothing is kept between calls. This form is the measure of correctness for every faster one.
"""

import gc
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from zotune.adapter.spec import AdapterSpec, PromptSpec
from zotune.engine.torch.backward import Part, checked_record, scores_and_gradient
from zotune.engine.torch.forward_mode import eager_attention, values_and_tangents
from zotune.engine.torch.identity import weights_identity
from zotune.engine.torch.layers import TrainedLayers
from zotune.engine.torch.lora import LoraLayers
from zotune.engine.torch.quantization import quantization_method
from zotune.engine.torch.soft_prompt import SoftPrompt
from zotune.engine.torch.weights import ModelWeights
from zotune.engine.torch.whole_model import WholeModel
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

TRIAL = Example((2, 3), (4,), ((5,), (6,)))  # to find out what a model's own code can do


@dataclass(frozen=True)
class _Row:
    example: int
    input_ids: TokenIds
    num_adapted: int  # how many of the last tokens an activated adapter acts on
    candidates: tuple[int, ...]


class PlainEngine:
    """Scores probes of an adapter, or of all parameters, on any causal LM of transformers, on CPU or CUDA.

    Args:
        model: the base model; it is put in evaluation mode and gets forward hooks until `close`.
        spec: the form of the adapter, LoRA or a soft prompt; None: theta is the model's own parameters.
        max_tokens_per_forward: rows are packed into forward passes of at most this many tokens, padding included.
    """

    def __init__(self, model: PreTrainedModel, spec: AdapterSpec | None, max_tokens_per_forward: int = 4096) -> None:
        self.model = model.eval()
        self.max_tokens_per_forward = max_tokens_per_forward
        self.stats = EngineStats()
        self.layers = _trained_layers(model, spec)
        self.spec = self.layers.spec if isinstance(self.layers, LoraLayers) else spec
        self.scope = "everywhere" if spec is None else spec.scope
        self._identity = weights_identity(model)  # now: training moves weights, and passes lay quantised ones out

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
    def score(self, theta: Theta, probes: Sequence[Probe], batch: Sequence[Example]) -> Scores:
        num_tokens, log_probs = empty_scores(len(probes), batch)
        forwards = self._forwards(batch)
        if any(probe.derivative for probe in probes):
            return Scores(log_probs, num_tokens, self._tangents(theta, probes, forwards, batch, log_probs))
        for probe_scores, probe in zip(log_probs, probes, strict=True):
            self.layers.place(theta, [probe])
            for rows in forwards:
                _put(self._log_probs(rows, batch), rows, batch, probe_scores)
        return Scores(log_probs, num_tokens)

    def _tangents(
        self, theta: Theta, probes: Sequence[Probe], forwards: list[list[_Row]], batch: Sequence[Example],
        log_probs: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """Derivatives [probe, example, candidate], one direction at a time; fills `log_probs` too."""
        tangents, before = np.zeros_like(log_probs), self.stats.tokens_computed
        with eager_attention(self.model):
            for index, probe in enumerate(probes):
                assert isinstance(self.layers, LoraLayers)
                for rows in forwards:
                    values, (moved,) = values_and_tangents(
                        self.layers, theta, [probe], partial(self._log_probs, rows, batch)
                    )
                    _put(values, rows, batch, log_probs[index])
                    _put(moved, rows, batch, tangents[index])
        self.stats.tokens_computed += self.stats.tokens_computed - before  # each token's tangent
        return tangents

    def why_not(self, need: Need) -> str | None:
        if need == "tangents":
            return self._why_no_tangents()
        return self._why_no_gradients() if need == "gradients" else None

    def _why_no_tangents(self) -> str | None:
        if not isinstance(self.layers, LoraLayers):
            return "only LoRA's matrices have derivatives here"
        if method := quantization_method(self.model.config):  # some of their operators would say 0 and no error
            return f"products with quantised weights ({method}) have no derivatives in forward mode"
        probe = Probe(2, 0.0, derivative=True)
        return self._why_failed(lambda theta: self.score(theta, [probe], [TRIAL]), "derivatives in forward mode")

    def _why_no_gradients(self) -> str | None:
        if self.layers.why_no_gradients:
            return self.layers.why_no_gradients
        method = quantization_method(self.model.config)
        if method not in (None, "bitsandbytes"):  # some kernels would pass nothing back, and raise no error
            return f"products with weights quantised by {method} are not known to pass gradients back"

        def work(theta: Theta) -> None:
            self.score(theta, [AT_THETA], [TRIAL])  # after which some layers have weights packed for inference
            with checked_record(self.model):
                self.gradient(theta, [TRIAL], lambda scores: np.ones(scores.num_tokens.shape))

        reason = self._why_failed(work, "gradients")
        if reason and method:
            dtype = str(self.model.dtype).removeprefix("torch.")
            return f"products with weights quantised by {method} pass no gradients back in {dtype} here"
        return reason

    def _why_failed(self, work: Callable[[Theta], object], what: str) -> str | None:
        theta = {name: np.zeros(shape, dtype=np.float32) for name, shape in self.tensor_shapes.items()}
        stats = vars(self.stats).copy()
        try:
            work(theta)
        except Exception as error:  # whatever a model's own code raises over numbers that have derivatives
            return f"{type(self.model).__name__} does not compute {what} ({error})"
        finally:
            vars(self.stats).update(stats)
        return None

    def gradient(self, theta: Theta, batch: Sequence[Example], cotangents: Cotangents) -> tuple[Scores, Theta]:
        """By backpropagation over whole sequences."""
        parts = [
            Part(
                partial(self._log_probs, rows, batch),
                np.array([(row.example, c) for row in rows for c in row.candidates for _ in _tokens(row, c, batch)]),
                partial(_scores, rows, batch),
            )
            for rows in self._forwards(batch)
        ]
        score = partial(self.score, theta, [AT_THETA], batch)
        return scores_and_gradient(self.model, self.layers, theta, parts, score, cotangents)

    @torch.inference_mode()
    def generate(
        self, theta: Theta, probes: Sequence[Probe], prompts: Sequence[Example], sampling: Sampling
    ) -> list[list[TokenIds]]:
        rows = [_Row(i, e.prompt + e.invocation, len(e.invocation), ()) for i, e in enumerate(prompts)]
        results: list[list[TokenIds]] = []
        for probe in probes:
            self.layers.place(theta, [probe])
            texts: list[TokenIds] = [()] * len(prompts)
            for chunk in self._pack(rows, num_new=sampling.max_new_tokens):
                for row, token_ids in zip(chunk, self._generate_rows(chunk, sampling), strict=True):
                    texts[row.example] = token_ids
            results.append(texts)
        return results

    def peak_memory_bytes(self) -> int:
        if self.model.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.model.device)
        return peak_resident_bytes()

    def close(self) -> None:
        self.layers.remove()

    def _forwards(self, batch: Sequence[Example]) -> list[list[_Row]]:
        return list(self._pack([row for index, example in enumerate(batch) for row in _rows(index, example)]))

    def _pack(self, rows: list[_Row], num_new: int = 0) -> Iterator[list[_Row]]:
        """Rows of like length together, as many as fit: little padding, and the same packs for every probe."""
        pack: list[_Row] = []
        for row in sorted(rows, key=lambda row: len(row.input_ids), reverse=True):
            longest = len(pack[0].input_ids) if pack else len(row.input_ids)
            if pack and (len(pack) + 1) * (longest + num_new) > self.max_tokens_per_forward:
                yield pack
                pack = []
            pack.append(row)
        yield pack

    def _inputs(self, rows: list[_Row]) -> dict[str, torch.Tensor]:
        """Left-padded model inputs; sets the token mask of the adapter."""
        longest = len(rows[0].input_ids)
        input_ids = torch.zeros((len(rows), longest), dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        self.layers.num_groups = 1
        for index, row in enumerate(rows):
            input_ids[index, longest - len(row.input_ids) :] = torch.tensor(row.input_ids)
            attention_mask[index, longest - len(row.input_ids) :] = 1
        if self.scope == "activated":
            adapted = torch.tensor([row.num_adapted for row in rows])[:, None]
            self.layers.token_mask = (torch.arange(longest)[None, :] >= longest - adapted).to(self.model.device)
        device = self.model.device
        return {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}

    def _count(self, inputs: dict[str, torch.Tensor]) -> None:
        self.stats.forward_passes += 1
        self.stats.tokens_computed += int(inputs["attention_mask"].sum())

    def _log_probs(self, rows: list[_Row], batch: Sequence[Example]) -> torch.Tensor:
        """One forward pass; log-probabilities of the tokens of the rows' candidates, one after the other."""
        inputs = self._inputs(rows)
        position_ids = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        num_scored = max(len(batch[row.example].candidates[c]) for row in rows for c in row.candidates)
        logits = self.model(
            **inputs, position_ids=position_ids, logits_to_keep=num_scored, use_cache=False
        ).logits[:, -num_scored:]  # fmt: skip
        self._count(inputs)
        targets = [
            (index, num_scored - len(candidate) + offset, token)
            for index, row in enumerate(rows)
            for candidate in (batch[row.example].candidates[c] for c in row.candidates)
            for offset, token in enumerate(candidate)
        ]
        row_index, position, token = torch.tensor(targets, device=logits.device).unbind(dim=1)
        normalizers = torch.logsumexp(logits.float(), dim=-1)  # [rows, scored positions]
        return logits[row_index, position, token].float() - normalizers[row_index, position]

    def _generate_rows(self, rows: list[_Row], sampling: Sampling) -> list[TokenIds]:
        inputs = self._inputs(rows)
        token_ids = inputs["input_ids"]
        if (virtual := token_ids < 0).any():  # transformers looks at ids too, as for a repetition penalty
            inputs["inputs_embeds"] = self.model.get_input_embeddings()(token_ids)
            inputs["input_ids"] = torch.where(virtual, token_ids[:, -1:].clamp(min=0), token_ids)
        stop = list(sampling.stop_token_ids)
        config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=sampling.temperature > 0.0,
            temperature=sampling.temperature or None,
            top_k=0 if sampling.temperature > 0.0 else None,
            eos_token_id=stop or None,
            pad_token_id=stop[0] if stop else 0,
            use_cache=True,  # also where a model was saved without: what is computed is one token at a time
        )
        with torch.random.fork_rng(devices=[self.model.device] if self.model.device.type == "cuda" else []):
            torch.manual_seed(sampling.seed)
            sequences = self.model.generate(**inputs, generation_config=config)
        new_tokens = sequences[:, inputs["input_ids"].shape[1] :].tolist()
        self._count(inputs)
        self.stats.forward_passes += len(new_tokens[0]) - 1
        completions = [_until(token_ids, stop) for token_ids in new_tokens]
        self.stats.tokens_computed += sum(len(token_ids) for token_ids in completions)
        return completions


def _trained_layers(model: PreTrainedModel, spec: AdapterSpec | None) -> TrainedLayers:
    if spec is None:
        return WholeModel(model)
    return SoftPrompt(model, spec) if isinstance(spec, PromptSpec) else LoraLayers(model, spec)


def peak_resident_bytes() -> int:
    """The most memory that this process has had in use."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux: getrusage would count what a parent process held when it started this one
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory() -> None:
    """Count `peak_memory_bytes` of engines in this process from here on, where the system can (Linux, CUDA)."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: resets VmHWM


def empty_scores(num_probes: int, batch: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Token counts [example, candidate], and log-probabilities [probe, example, candidate]: 0, or -inf where absent."""
    num_tokens = np.zeros((len(batch), max(len(example.candidates) for example in batch)), dtype=np.int64)
    for index, example in enumerate(batch):
        num_tokens[index, : len(example.candidates)] = [len(candidate) for candidate in example.candidates]
    present = np.arange(num_tokens.shape[1]) < np.array([[len(example.candidates)] for example in batch])
    return num_tokens, np.where(present, 0.0, -np.inf).astype(np.float32)[None].repeat(num_probes, axis=0)


def _put(token_values: torch.Tensor, rows: list[_Row], batch: Sequence[Example], probe_scores: np.ndarray) -> None:
    """Sums over the tokens of the rows' candidates, into [example, candidate]."""
    values = iter(token_values.tolist())
    for row in rows:
        for c in row.candidates:
            probe_scores[row.example, c] = sum(next(values) for _ in batch[row.example].candidates[c])


def _scores(rows: list[_Row], batch: Sequence[Example], token_values: torch.Tensor) -> Scores:
    num_tokens, log_probs = empty_scores(1, batch)
    _put(token_values, rows, batch, log_probs[0])
    return Scores(log_probs, num_tokens)


def _tokens(row: _Row, candidate: int, batch: Sequence[Example]) -> TokenIds:
    return batch[row.example].candidates[candidate]


def _rows(index: int, example: Example) -> Iterator[_Row]:
    sharing: dict[TokenIds, list[int]] = {}
    for c, candidate in enumerate(example.candidates):
        sharing.setdefault(candidate[:-1], []).append(c)
    for start, candidates in sharing.items():
        suffix = example.invocation + start
        yield _Row(index, example.prompt + suffix, len(suffix), tuple(candidates))


def _until(token_ids: list[int], stop: list[int]) -> TokenIds:
    ends = [index for index, token in enumerate(token_ids) if token in stop]
    return tuple(token_ids[: ends[0]] if ends else token_ids)
