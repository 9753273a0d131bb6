"""The SGLang engine, as the trainer's process sees it: it starts the ranks, gives them theta and asks for numbers.

Nothing of SGLang is imported here. A rank is a process of its own (rank.py); commands go over a pipe to each, and
theta, whenever it has changed, into memory that all of them map. In the step nothing else passes but the probes'
seeds and distances, the examples' token ids, and the scores. Both the memory and the pipes are without names, so
nothing is left behind however the process ends.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig

from zotune.adapter.forms import initial_theta
from zotune.adapter.spec import LoraSpec
from zotune.adapter.start import Start
from zotune.engine.sglang.live.arrival import Arrival
from zotune.engine.sglang.live.server_rank import ServerRank
from zotune.engine.sglang.models import check_config
from zotune.engine.sglang.names import check
from zotune.engine.sglang.options import check_options, server_options
from zotune.engine.sglang.plugin import cpu
from zotune.engine.sglang.rank_process import RankProcess, free_port
from zotune.engine.sglang.rank_start import RankStart, mapped_theta
from zotune.engine.sglang.visits import FORMS
from zotune.engine.torch.eva import answered, components_of, some_of, start_with, stop_tokens
from zotune.engine.torch.loading import context_length, empty_model
from zotune.engine.torch.lora import LoraLayers
from zotune.errors import InputError, TrainingError
from zotune.zo.protocol import (
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

MAX_SLOTS = 32
MAX_KV_SHARE = 0.25  # of a CPU's free memory, where the user sets no --sglang.max-total-tokens
logger = logging.getLogger("zotune")


class SglangEngine:
    """Scores probes of a LoRA adapter on SGLang's own model, LoRA slots and radix tree.

    Args:
        model: local folder or hub id.
        config: its configuration, as transformers reads it.
        spec: the form of the adapter; without target modules the engine is the bare model.
        num_probes: how many probes a step has; as many slots are made, up to MAX_SLOTS. More go in turns.
        options: SGLang's own options, by the names of its ServerArgs.
        server: the socket of a server's scheduler (`live`), which then does the work, with its own options.

    Raises:
        InputError: SGLang is absent or another version, or cannot run this model, adapter or option.
    """

    weights: None = None  # theta is never the model's own parameters

    def __init__(
        self,
        model: str,
        config: PretrainedConfig,
        spec: LoraSpec,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        num_probes: int = 2,
        trust_remote_code: bool = False,
        options: Mapping[str, Any] | None = None,
        server: str | None = None,
    ) -> None:
        options = dict(options or {})
        check()
        check_options(options)
        check_config(config, options)
        (self._architecture,) = set(config.architectures or ()) & set(FORMS)
        shapes, spec = adapter_shapes(config, spec, trust_remote_code)
        self.spec = spec
        self._config = config
        self.tensor_shapes: dict[str, tuple[int, ...]] = shapes
        self.stats = EngineStats()
        self.counts: Any = None  # SGLang's own: forward passes, tokens computed, tokens served from its cache
        self._last_theta: Theta | None = None
        self._version = 0
        self._matrices = dict(spec.matrices) or shapes
        self._ranks: list[RankProcess | ServerRank] = []
        size = max(4 * sum(_count(shape) for shape in shapes.values()), 1)
        theta_file = os.memfd_create("zotune-theta")
        os.truncate(theta_file, size)
        try:
            self._theta = mapped_theta(theta_file, shapes, writable=True)
            if server is None:
                slots = options.pop("max_loras_per_batch", None)
                num_slots = 0 if not shapes else max(1, int(slots) - 1) if slots else min(num_probes, MAX_SLOTS)
                targets = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in self._matrices})
                served = server_options(
                    options, model=model, dtype=dtype, device=device, trust_remote_code=trust_remote_code,
                    rank=spec.rank, target_modules=targets, num_slots=num_slots,
                    max_tokens=_default_tokens(config, dtype, device),
                )  # fmt: skip
                num_ranks, port = int(options.get("tp_size", 1)), free_port()
                for rank in range(num_ranks):
                    start = RankStart(rank, port, served, spec, shapes, num_slots, os.getpid())
                    self._ranks.append(RankProcess(start, theta_file, cpu.cores_of_ranks(num_ranks)))
            else:
                self._ranks.append(ServerRank(server))
                theta = f"/proc/{os.getpid()}/fd/{theta_file}"
                self._ranks[0].send(("arrive", (Arrival(spec, shapes, theta, num_probes, model, dtype),)))
            self.capacity: int = self._answers()["capacity"]
        except BaseException:
            self.close()
            raise
        finally:
            os.close(theta_file)

    def score(self, theta: Theta, probes: Sequence[Probe], batch: Sequence[Example], normalized: bool = True) -> Scores:
        self._give(theta)
        scores: Scores = self._ask("score", self._version, list(probes), list(batch))
        self._count_what_ran()
        return scores

    def identity(self) -> None:
        """Not known: SGLang reads the weights itself, and lays them out its own way."""

    def in_float32(self) -> None:
        """SGLang's kernels are of one precision."""

    def why_not(self, need: Need) -> str | None:
        if need == "lens":
            if self.spec.peft_type not in ("lora", "lora_fa"):
                return "the lens gives the gradients of LoRA's A and B alone (--tuning lora or lora_fa)"
            form = FORMS[self._architecture]
            names = tuple(f".{name}.lora_A.weight" for name in (form.attention_output, form.down))
            if other := [name for name in self._matrices if name.endswith("A.weight") and not name.endswith(names)]:
                writers = " and ".join(name.split(".")[-3] for name in names)
                return f"with --engine sglang it adapts {writers}, and not {other[0].split('.')[-3]}"
            return None
        return "SGLang's passes have no derivatives" if need in ("tangents", "gradients") else None

    def gradient(
        self, theta: Theta, batch: Sequence[Example], cotangents: Cotangents, normalized: bool = True
    ) -> tuple[Scores, Theta]:
        raise TypeError(self.why_not("gradients"))

    def lens_gradient(
        self, theta: Theta, batch: Sequence[Example], cotangents: Cotangents, normalized: bool = True
    ) -> tuple[Scores, Theta]:
        self._give(theta)
        scores: Scores = self._ask("watched", self._version, list(batch))
        gradient: Theta = self._ask("lens_gradient", cotangents(scores))
        self._count_what_ran()
        return scores, gradient

    def generate(
        self, theta: Theta, probes: Sequence[Probe], prompts: Sequence[Example], sampling: Sampling
    ) -> list[list[TokenIds]]:
        self._give(theta)
        texts: list[list[TokenIds]] = self._ask("generate", self._version, list(probes), list(prompts), sampling)
        self._count_what_ran()
        return texts

    def principal_components(self, examples: Sequence[Example], seed: int) -> Start:
        """A of each adapted module, as `engine.torch.eva` has it."""
        theta, chosen = initial_theta(self.tensor_shapes, seed), some_of(examples)
        if not any(map(len, chosen[0].candidates)):
            context, stop = context_length(self._config), stop_tokens(self._config.eos_token_id)
            chosen = answered(self, theta, chosen, context, stop)
        self._give(theta)
        shapes = {name: shape for name, shape in self._matrices.items() if name.endswith("lora_A.weight")}
        components: dict[str, np.ndarray] = {}
        for name in self._ask("watch_inputs", self._version, list(chosen)):
            tokens = torch.from_numpy(self._ask("inputs_of", name))
            components[name] = components_of(tokens, shapes[name][0], name.removesuffix(".lora_A.weight"))
        self._count_what_ran()
        return start_with(components, shapes, seed)

    def start_from(self, start: Start) -> None:
        """What it has of A is not drawn, but taken from there."""
        self.spec = replace(self.spec, start=start)
        self._ask("start_from", start)

    def peak_memory_bytes(self) -> int:
        """Of one rank: the device's, or its process's resident set."""
        peak: int = self._ask("peak_memory_bytes")
        return peak

    def close(self) -> None:
        """End the ranks; the memory that they shared goes with them."""
        for rank in self._ranks:
            rank.end()
        self._ranks.clear()

    def _give(self, theta: Theta) -> None:
        if theta is not self._last_theta:  # a theta is never written in place
            for name, shared in self._theta.items():
                shared[...] = theta[name]
            self._last_theta = theta
            self._version += 1

    def _count_what_ran(self) -> None:
        stats, self.counts = self._ask("stats")
        vars(self.stats).update(vars(stats))

    def _ask(self, method: str, *arguments: Any) -> Any:
        assert self._ranks, "the engine is closed"
        for rank in self._ranks:
            rank.send((method, arguments))
        return self._answers()

    def _answers(self) -> Any:
        """The first rank's answer, once all have one; the first to fail ends them all."""
        answers: dict[int, Any] = {}
        waiting = {rank.connection: index for index, rank in enumerate(self._ranks)}
        while waiting:
            for ready in wait(list(waiting)):
                index = waiting.pop(ready)  # type: ignore[call-overload]
                kind, answer = self._ranks[index].receive()
                if kind != "ok":
                    log = self._ranks[index].log()
                    self.close()
                    if kind == "refused":
                        raise InputError(answer)
                    logger.debug("what the SGLang process said:\n%s", log)
                    raise TrainingError(f"SGLang's process stopped: {answer}")
                answers[index] = answer
        return answers[0]


def adapter_shapes(
    config: PretrainedConfig, spec: LoraSpec, trust_remote_code: bool = False
) -> tuple[dict[str, tuple[int, ...]], LoraSpec]:
    """Theta's tensors for this model, read off its structure, and the form of the adapter; no weights are made."""
    if not spec.target_modules:
        return {}, spec
    layers = LoraLayers(empty_model(config, trust_remote_code), spec)
    layers.remove()
    return layers.shapes, layers.spec


def _default_tokens(config: PretrainedConfig, dtype: str, device: str) -> int | None:
    """Tokens of KV in a CPU's memory; a GPU is SGLang's to divide."""
    if device != "cpu":
        return None
    import psutil

    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * heads * size * (4 if dtype == "float32" else 2)
    return min(2**20, int(MAX_KV_SHARE * psutil.virtual_memory().available / per_token))


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
