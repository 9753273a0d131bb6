"""Theta as named tensors, and PEFT's adapter folders in and out.

An adapter folder is `adapter_config.json` and `adapter_model.safetensors` in PEFT's format: PEFT, transformers,
SGLang and vLLM load it. The tensor names of theta are the names in that file.

Forms of LoRA with fewer trained numbers (FORMS) are functions from their theta to LoRA's matrices: engines and files
see LoRA's alone. A soft prompt (PromptSpec) is no LoRA: its theta is the vectors themselves.
"""

import errno
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from zotune.adapter.start import Start
from zotune.errors import InputError
from zotune.zo.noise import gaussian, uniform
from zotune.zo.setting import setting

Shapes = Mapping[str, tuple[int, ...]]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
REQUIRED = {"LORA": ("r", "lora_alpha", "target_modules"), "PROMPT_TUNING": ("num_virtual_tokens",)}  # by peft_type
UNSUPPORTED = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")  # they change the product
PROMPT_EMBEDDINGS = "prompt_embeddings"  # the one tensor of a soft prompt, in theta and in PEFT's file
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class LoraSpec:
    """The form of an adapter: everything but its numbers. With `invocation_tokens` it is an activated one.

    Forms that freeze something have its seed, and the names and shapes of LoRA's matrices, which the engine fills in.
    `start` holds the A that comes from the data, where it does.
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    invocation_tokens: tuple[int, ...] | None = None
    fan_in_fan_out: bool = False  # PEFT's word for modules that keep their weight transposed, as GPT-2's do
    peft_type: str = "lora"
    frozen_seed: int = 0
    matrices: tuple[tuple[str, tuple[int, ...]], ...] = ()
    start: Start | None = None
    virtual_tokens: ClassVar[tuple[int, ...]] = ()

    @property
    def scope(self) -> str:
        return "everywhere" if self.invocation_tokens is None else "activated"


@dataclass(frozen=True)
class PromptSpec:
    """The form of a soft prompt (Lester et al., 2021, arXiv 2104.08691): how many trained vectors precede every prompt.

    Their places in an example are `virtual_tokens`, the ids -1, -2, ...: no tokenizer's, so they stay apart from text.
    """

    num_virtual_tokens: int = setting(
        20, "Trained vectors in front of every prompt; they count towards --max-length.", at_least=1
    )
    peft_type: ClassVar[str] = "prompt_tuning"
    scope: ClassVar[str] = "everywhere"
    invocation_tokens: ClassVar[None] = None
    start: ClassVar[None] = None

    @property
    def virtual_tokens(self) -> tuple[int, ...]:
        return tuple(range(-1, -self.num_virtual_tokens - 1, -1))


AdapterSpec = LoraSpec | PromptSpec


def tensor_name(module_name: str, matrix: str) -> str:
    """The name of LoRA matrix "A" or "B" of a module in PEFT's files."""
    return f"{_PREFIX}{module_name}.lora_{matrix}.weight"


def initial_theta(shapes: Shapes, seed: int, spec: AdapterSpec | None = None) -> dict[str, np.ndarray]:
    """The initial point: LoRA's B and VeRA's b are zero, A uniform in +-1/sqrt(inputs) (Kaiming with a = sqrt 5) and
    d = 0.1, all as PEFT's; a soft prompt is Gaussian of deviation 0.02, as the embeddings of models start. What the
    start of `spec` holds is taken from there."""
    start = spec.start.tensors if spec and spec.start else {}

    def initial(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name in start:
            return start[name]
        if name == PROMPT_EMBEDDINGS:
            return np.float32(0.02) * gaussian(seed, f"initial/{name}", shape)
        if name.endswith("lora_A.weight"):
            return uniform(seed, f"initial/{name}", shape, bound=shape[1] ** -0.5)
        return np.full(shape, 0.1 if name.endswith("vera_lambda_d") else 0.0, dtype=np.float32)

    return {name: initial(name, shape) for name, shape in shapes.items()}


@dataclass(frozen=True)
class _Form:
    """How theta stands for LoRA's matrices.

    `shapes` maps LoRA's shapes to theta's; `frozen` draws what is not trained; `matrices` puts LoRA's together.
    """

    shapes: Callable[[Shapes], Shapes]
    frozen: Callable[[LoraSpec], dict[str, np.ndarray]]
    matrices: Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray], LoraSpec], dict[str, np.ndarray]]


def trained_shapes(matrices: Shapes, spec: LoraSpec) -> Shapes:
    """The shapes of theta, from those of LoRA's matrices."""
    return FORMS[spec.peft_type].shapes(matrices)


def lora_matrices(theta: Mapping[str, np.ndarray], spec: LoraSpec) -> dict[str, np.ndarray]:
    """The A and B that theta stands for, under the names in PEFT's files."""
    return FORMS[spec.peft_type].matrices(theta, _frozen(spec), spec)


def lora_tangents(direction: Mapping[str, np.ndarray], spec: LoraSpec) -> dict[str, np.ndarray]:
    """How A and B change as theta moves along `direction`: every form is linear in theta but for what is frozen."""
    frozen = _frozen(spec)
    moved = FORMS[spec.peft_type].matrices(direction, frozen, spec)
    return {name: np.zeros_like(value) if name in frozen else value for name, value in moved.items()}


@lru_cache(maxsize=4)
def _frozen(spec: LoraSpec) -> dict[str, np.ndarray]:
    return FORMS[spec.peft_type].frozen(spec)


def _vera_shapes(matrices: Shapes) -> Shapes:
    """d of length rank and b of length outputs for each module."""
    return {
        name.replace("lora_A.weight", "vera_lambda_d").replace("lora_B.weight", "vera_lambda_b"): (shape[0],)
        for name, shape in matrices.items()
    }


def _vera_frozen(spec: LoraSpec) -> dict[str, np.ndarray]:
    """One A [rank, most inputs] and one B [most outputs, rank] for all modules, Kaiming-uniform as PEFT's."""
    inputs = max(shape[1] for name, shape in spec.matrices if name.endswith("lora_A.weight"))
    outputs = max(shape[0] for name, shape in spec.matrices if name.endswith("lora_B.weight"))
    return {
        "A": uniform(spec.frozen_seed, "vera_A", (spec.rank, inputs), bound=(6 / inputs) ** 0.5),
        "B": uniform(spec.frozen_seed, "vera_B", (outputs, spec.rank), bound=(6 / spec.rank) ** 0.5),
    }


def _vera_matrices(
    theta: Mapping[str, np.ndarray], frozen: Mapping[str, np.ndarray], spec: LoraSpec
) -> dict[str, np.ndarray]:
    """A = diag(d) A_shared and B = diag(b) B_shared, each cut to its module."""
    return {
        name: theta[vector][:, None] * frozen["A" if name.endswith("lora_A.weight") else "B"][: shape[0], : shape[1]]
        for (name, shape), vector in zip(spec.matrices, _vera_shapes(dict(spec.matrices)), strict=True)
    }


FORMS = {
    "lora": _Form(lambda matrices: matrices, lambda spec: {}, lambda theta, frozen, spec: dict(theta)),
    # LoRA-FA (Zhang et al., 2023, arXiv 2308.03303): A stays as it starts.
    "lora_fa": _Form(
        lambda matrices: {name: shape for name, shape in matrices.items() if name.endswith("lora_B.weight")},
        lambda spec: initial_theta(
            {name: shape for name, shape in spec.matrices if name.endswith("lora_A.weight")}, spec.frozen_seed, spec
        ),
        lambda theta, frozen, spec: {**frozen, **theta},
    ),
    # VeRA (Kopiczko et al., 2024, arXiv 2310.11454): a frozen random A and B for all modules, trained scalings of rows.
    "vera": _Form(_vera_shapes, _vera_frozen, _vera_matrices),
}


def save_adapter(folder: Path, theta: Mapping[str, np.ndarray], spec: AdapterSpec, base_model: str) -> None:
    """Write an adapter folder. Each file is replaced whole, so a reader never sees half of one."""
    tensors = lora_matrices(theta, spec) if isinstance(spec, LoraSpec) else dict(theta)
    config = _peft_config(tensors, spec, base_model)
    text = json.dumps({k: _plain(v) for k, v in config.items()}, indent=2, sort_keys=True) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    new_config, new_weights = folder / f"{CONFIG_FILE}.new", folder / f"{WEIGHTS_FILE}.new"
    new_config.write_text(text, encoding="utf-8")
    try:
        save_file(tensors, new_weights, metadata={"format": "pt"})
    except SafetensorError as error:  # the library's own words for a full or unwritable disk
        raise OSError(errno.EIO, str(error), str(new_weights)) from error
    new_config.replace(folder / CONFIG_FILE)
    new_weights.replace(folder / WEIGHTS_FILE)


def _peft_config(tensors: Mapping[str, np.ndarray], spec: AdapterSpec, base_model: str) -> dict[str, Any]:
    """What adapter_config.json holds."""
    from peft import LoraConfig, PromptTuningConfig

    shared: dict[str, Any] = {
        "task_type": "CAUSAL_LM", "base_model_name_or_path": base_model, "inference_mode": True,
    }  # fmt: skip
    if isinstance(spec, PromptSpec):
        return PromptTuningConfig(
            num_virtual_tokens=spec.num_virtual_tokens,
            token_dim=tensors[PROMPT_EMBEDDINGS].shape[1],  # PEFT's guess is the width behind OPT's projection
            num_transformer_submodules=1,
            **shared,
        ).to_dict()
    return LoraConfig(
        r=spec.rank,
        # An integer where it is one: some readers of the format insist.
        lora_alpha=int(spec.alpha) if float(spec.alpha).is_integer() else spec.alpha,  # type: ignore[arg-type]
        target_modules="all-linear" if spec.target_modules == ("all-linear",) else sorted(spec.target_modules),
        alora_invocation_tokens=list(spec.invocation_tokens) if spec.invocation_tokens is not None else None,
        fan_in_fan_out=spec.fan_in_fan_out,
        **shared,
    ).to_dict()


def load_adapter(folder: Path) -> tuple[dict[str, np.ndarray], AdapterSpec]:
    """Read an adapter folder.

    Raises:
        InputError: no adapter there, or one that is neither plain LoRA nor a soft prompt.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise InputError(f"--adapter: {folder} is not an adapter folder: it has no {name}")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        theta = {name: np.asarray(value, dtype=np.float32) for name, value in load_file(folder / WEIGHTS_FILE).items()}
    except (ValueError, SafetensorError) as error:
        raise InputError(f"--adapter: {folder} is damaged: {error}") from error
    kind = config.get("peft_type") if isinstance(config, dict) else "no settings"
    if not isinstance(kind, str) or kind not in REQUIRED:
        raise InputError(
            f"--adapter: {folder} has peft_type {kind!r}; only plain LoRA and prompt-tuning adapters can be loaded"
        )
    if unsupported := [key for key in UNSUPPORTED if config.get(key)]:
        raise InputError(f"--adapter: {folder} uses {', '.join(unsupported)}; only plain LoRA adapters can be loaded")
    if missing := [key for key in REQUIRED[kind] if not config.get(key)]:
        raise InputError(f"--adapter: {folder} is damaged: {CONFIG_FILE} has no {', '.join(missing)}")
    if kind == "PROMPT_TUNING":
        return theta, PromptSpec(config["num_virtual_tokens"])
    targets, invocation = config["target_modules"], config.get("alora_invocation_tokens")
    return theta, LoraSpec(
        rank=config["r"],
        alpha=config["lora_alpha"],
        target_modules=(targets,) if isinstance(targets, str) else tuple(targets),
        invocation_tokens=tuple(invocation) if invocation is not None else None,
        fan_in_fan_out=config.get("fan_in_fan_out", False),
    )


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, set) else value
