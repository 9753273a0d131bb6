"""Adapter folders in PEFT's format, in and out: `adapter_config.json` and `adapter_model.safetensors`.

PEFT, transformers, SGLang and vLLM load them. Forms with fewer trained numbers than LoRA are written as the LoRA that
they stand for.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from zotune.adapter.base import BASE_FILE, Base
from zotune.adapter.forms import is_matrix, lora_matrices
from zotune.adapter.peft_rules import lora_config
from zotune.adapter.peft_settings import read_settings
from zotune.adapter.spec import PROMPT_EMBEDDINGS, AdapterSpec, LoraSpec, PromptSpec
from zotune.errors import InputError
from zotune.files import Content, write_together

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLED_FILE = "adapter_model.bin"
_BASE_MODEL = ("base_model_name_or_path", "revision")
_NAMED_DEFAULT = re.compile(r"(\.lora_[AB])\.default\.weight$")  # PEFT's name for an adapter, as of a model in memory
_DIGEST = "sha256"  # of the tensors, in the metadata of their file


def save_adapter(
    folder: Path, theta: Mapping[str, np.ndarray], spec: AdapterSpec, base_model: str, base: Base | None = None
) -> None:
    """Write an adapter folder, or the next adapter into one. A reader never sees half of a file.

    A digest of the tensors lies in the metadata of their own file, so that the two never come apart.

    Args:
        base: the base weights that theta was trained on, where they are known.

    Raises:
        OSError: with the name of the file; the adapter that was there is as it was.
    """
    tensors = _tensors_of(theta, spec)
    config = _peft_config(tensors, spec, base_model)
    # Sorted here, and not by the library: the entries of a pattern have an order.
    text = json.dumps({name: _plain(config[name]) for name in sorted(config)}, indent=2) + "\n"
    contents: dict[str, Content] = {BASE_FILE: base.to_json()} if base else {}
    contents |= {CONFIG_FILE: text.encode(), WEIGHTS_FILE: _with_digest(tensors)}
    write_together(folder, contents)


def is_saved(folder: Path, theta: Mapping[str, np.ndarray], spec: AdapterSpec) -> bool:
    """Whether a folder holds an adapter of that form with these very numbers."""
    tensors = _tensors_of(theta, spec)
    try:
        found, _ = load_adapter(folder)
    except InputError:
        return False
    return found.keys() == tensors.keys() and all(
        np.array_equal(found[name], value, equal_nan=True) for name, value in tensors.items()
    )


def _tensors_of(theta: Mapping[str, np.ndarray], spec: AdapterSpec) -> dict[str, np.ndarray]:
    """What a file holds."""
    if not isinstance(spec, LoraSpec):
        return dict(theta)
    return lora_matrices(theta, spec) | {name: value for name, value in theta.items() if not is_matrix(name)}


def _peft_config(tensors: Mapping[str, np.ndarray], spec: AdapterSpec, base_model: str) -> dict[str, Any]:
    """What adapter_config.json holds."""

    shared: dict[str, Any] = {"base_model_name_or_path": base_model, "inference_mode": True}
    if isinstance(spec, PromptSpec):
        from peft import PromptTuningConfig

        return PromptTuningConfig(
            num_virtual_tokens=spec.num_virtual_tokens,
            token_dim=tensors[PROMPT_EMBEDDINGS].shape[1],  # PEFT's guess is the width behind OPT's projection
            num_transformer_submodules=1,
            task_type=spec.task_type,
            modules_to_save=list(spec.modules_to_save) or None,
            **shared,
        ).to_dict()
    return lora_config(spec, **shared).to_dict()


def load_adapter(folder: Path) -> tuple[dict[str, np.ndarray], AdapterSpec]:
    """Read an adapter folder: its tensors in fp32, and its form.

    Raises:
        InputError: no adapter there, a damaged one, or one with settings that zotune has not.
    """
    spec = read_settings(_settings(folder), str(folder / CONFIG_FILE))
    return _tensors(folder / WEIGHTS_FILE), spec


def base_model_of(folder: Path) -> str | None:
    """The base model that an adapter names, where it names one.

    Raises:
        InputError: it names a revision of it, which a folder has to be made for.
    """
    config = _settings(folder)
    name, revision = (config.get(key) if isinstance(config, dict) else None for key in _BASE_MODEL)
    if not isinstance(name, str) or not name:
        return None
    if revision not in (None, "", "main"):
        raise InputError(
            f"--model: the adapter {folder} is for revision {revision!r} of {name}; download that, and name its folder"
        )
    return name


def _settings(folder: Path) -> Any:
    """What adapter_config.json holds."""
    try:
        missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
        pickled = (folder / _PICKLED_FILE).is_file()
    except OSError as error:
        raise InputError(f"--adapter: cannot read {folder}: {error.strerror}") from error
    if missing == [WEIGHTS_FILE] and pickled:
        raise InputError(
            f"--adapter: {folder} has its tensors in {_PICKLED_FILE}, which may run code as it is read; load it with "
            f"PEFT and save it again, as {WEIGHTS_FILE}"
        )
    if missing:
        raise InputError(f"--adapter: {folder} is not an adapter folder: it has no {missing[0]}")
    try:
        return json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--adapter: {folder} is damaged: {CONFIG_FILE}: {error}") from error


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file, whatever their precision, in fp32."""
    try:
        with safe_open(path, framework="pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            digest = (file.metadata() or {}).get(_DIGEST)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"--adapter: {path.parent} is damaged: {path.name}: {error}") from error
    tensors = {}
    for name, tensor in stored.items():
        if not name.isprintable():
            raise InputError(f"--adapter: {path} is damaged: no module's tensor is named {name!r}")
        if not tensor.is_floating_point():
            raise InputError(f"--adapter: {path} has {name} as {tensor.dtype}, which is no number to compute with")
        tensors[name] = tensor.float().numpy()
        if not np.isfinite(tensors[name]).all():
            raise InputError(f"--adapter: {path} has numbers in {name} that are not finite")
    if digest not in (None, _digest(tensors)):
        raise InputError(f"--adapter: {path} is damaged: its tensors are not those that zotune wrote")
    plain = {_NAMED_DEFAULT.sub(r"\1.weight", name): tensor for name, tensor in tensors.items()}
    return plain if len(plain) == len(tensors) else tensors


def _with_digest(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The file of tensors. The library writes metadata of more than one entry in any order, and files are to be equal
    where their tensors are; so its header is written again."""
    content = save(dict(tensors), metadata={"format": "pt"})
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"][_DIGEST] = _digest(tensors)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, shapes and numbers."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(f"{name}\0{tensors[name].shape}\0".encode())
        found.update(np.ascontiguousarray(tensors[name], dtype="<f4").tobytes())
    return found.hexdigest()


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, set) else value
