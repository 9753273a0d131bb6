"""Theta as named tensors, and PEFT's adapter folders in and out.

An adapter folder is `adapter_config.json` and `adapter_model.safetensors` in PEFT's format: PEFT, transformers,
SGLang and vLLM load it. The tensor names of theta are the names in that file.
"""

import errno
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from zotune.errors import InputError
from zotune.noise import uniform

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
UNSUPPORTED = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")  # they change the product
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class LoraSpec:
    """The form of an adapter: everything but its numbers. With `invocation_tokens` it is an activated one."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    invocation_tokens: tuple[int, ...] | None = None
    fan_in_fan_out: bool = False  # PEFT's word for modules that keep their weight transposed, as GPT-2's do

    @property
    def scope(self) -> str:
        return "everywhere" if self.invocation_tokens is None else "activated"


def tensor_name(module_name: str, matrix: str) -> str:
    """The name of LoRA matrix "A" or "B" of a module in PEFT's files."""
    return f"{_PREFIX}{module_name}.lora_{matrix}.weight"


def initial_theta(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """LoRA's initial point: B is zero, A uniform in +-1/sqrt(inputs), as PEFT's (Kaiming with a = sqrt 5)."""
    return {
        name: uniform(seed, f"initial/{name}", shape, bound=shape[1] ** -0.5)
        if name.endswith("lora_A.weight")
        else np.zeros(shape, dtype=np.float32)
        for name, shape in shapes.items()
    }


def save_adapter(folder: Path, theta: Mapping[str, np.ndarray], spec: LoraSpec, base_model: str) -> None:
    """Write an adapter folder. Each file is replaced whole, so a reader never sees half of one."""
    from peft import LoraConfig

    config = LoraConfig(
        r=spec.rank,
        # An integer where it is one: some readers of the format insist.
        lora_alpha=int(spec.alpha) if float(spec.alpha).is_integer() else spec.alpha,  # type: ignore[arg-type]
        target_modules="all-linear" if spec.target_modules == ("all-linear",) else sorted(spec.target_modules),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model,
        alora_invocation_tokens=list(spec.invocation_tokens) if spec.invocation_tokens is not None else None,
        fan_in_fan_out=spec.fan_in_fan_out,
        inference_mode=True,
    ).to_dict()
    text = json.dumps({k: _plain(v) for k, v in config.items()}, indent=2, sort_keys=True) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    new_config, new_weights = folder / f"{CONFIG_FILE}.new", folder / f"{WEIGHTS_FILE}.new"
    new_config.write_text(text, encoding="utf-8")
    try:
        save_file(dict(theta), new_weights, metadata={"format": "pt"})
    except SafetensorError as error:  # the library's own words for a full or unwritable disk
        raise OSError(errno.EIO, str(error), str(new_weights)) from error
    new_config.replace(folder / CONFIG_FILE)
    new_weights.replace(folder / WEIGHTS_FILE)


def load_adapter(folder: Path) -> tuple[dict[str, np.ndarray], LoraSpec]:
    """Read an adapter folder.

    Raises:
        InputError: no adapter there, or one of a form that is not plain LoRA.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise InputError(f"--adapter: {folder} is not an adapter folder: it has no {name}")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        theta = {name: np.asarray(value, dtype=np.float32) for name, value in load_file(folder / WEIGHTS_FILE).items()}
    except (ValueError, SafetensorError) as error:
        raise InputError(f"--adapter: {folder} is damaged: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = repr(config.get("peft_type")) if isinstance(config, dict) else "no settings"
        raise InputError(f"--adapter: {folder} has peft_type {kind}; only plain LoRA adapters can be loaded")
    if unsupported := [key for key in UNSUPPORTED if config.get(key)]:
        raise InputError(f"--adapter: {folder} uses {', '.join(unsupported)}; only plain LoRA adapters can be loaded")
    if missing := [key for key in ("r", "lora_alpha", "target_modules") if not config.get(key)]:
        raise InputError(f"--adapter: {folder} is damaged: {CONFIG_FILE} has no {', '.join(missing)}")
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
