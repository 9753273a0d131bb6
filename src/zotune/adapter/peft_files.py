"""Adapter folders in PEFT's format, in and out: `adapter_config.json` and `adapter_model.safetensors`.

PEFT, transformers, SGLang and vLLM load them. Forms with fewer trained numbers than LoRA are written as the LoRA that
they stand for.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from zotune.adapter.base import BASE_FILE, Base
from zotune.adapter.forms import lora_matrices
from zotune.adapter.spec import PROMPT_EMBEDDINGS, AdapterSpec, LoraSpec, PromptSpec
from zotune.errors import InputError
from zotune.files import Content, write_together

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
REQUIRED = {"LORA": ("r", "lora_alpha", "target_modules"), "PROMPT_TUNING": ("num_virtual_tokens",)}  # by peft_type
UNSUPPORTED = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")  # they change the product


def save_adapter(
    folder: Path, theta: Mapping[str, np.ndarray], spec: AdapterSpec, base_model: str, base: Base | None = None
) -> None:
    """Write an adapter folder, or the next adapter into one. A reader never sees half of a file.

    Args:
        base: the base weights that theta was trained on, where they are known.

    Raises:
        OSError: with the name of the file; the adapter that was there is as it was.
    """
    tensors = lora_matrices(theta, spec) if isinstance(spec, LoraSpec) else dict(theta)
    config = _peft_config(tensors, spec, base_model)
    text = json.dumps({k: _plain(v) for k, v in config.items()}, indent=2, sort_keys=True) + "\n"
    contents: dict[str, Content] = {BASE_FILE: base.to_json()} if base else {}
    contents |= {
        CONFIG_FILE: text.encode(), WEIGHTS_FILE: lambda path: save_file(tensors, path, metadata={"format": "pt"})
    }  # fmt: skip
    write_together(folder, contents)


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
