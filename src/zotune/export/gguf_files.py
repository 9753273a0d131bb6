"""GGUF files, the format of llama.cpp, of a model with the adapter in its weights, or of a LoRA adapter alone.

A file is read back before it takes its place: every tensor against what was to be written, and the tokenizer. Written
by the package gguf; the model's own arithmetic is nowhere here.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zotune.adapter.forms import is_matrix
from zotune.adapter.peft_rules import rank_and_scaling
from zotune.assemble.model import model_path
from zotune.engine.torch.gguf import is_gguf
from zotune.engine.torch.loading import load_config
from zotune.errors import InputError
from zotune.export.gguf_names import GgufNames, add_sizes
from zotune.export.gguf_tokenizer import add_tokenizer
from zotune.export.merge import merged_model
from zotune.export.source import Source
from zotune.files import write_whole
from zotune.values import file_of

OutType = Literal["f32", "f16", "bf16", "q8_0"]
_PREFIX = "base_model.model."
# How much a number may differ that was stored, as a share of the largest of its tensor: half a unit in the last place;
# q8_0 also rounds its scale to f16.
LIMITS = {"f32": 0.0, "f16": 2**-11, "bf16": 2**-8, "q8_0": 0.5 / 127 + 2**-11}


@dataclass(frozen=True)
class Written:
    """What was read back of a file: how many tensors, and their largest difference to what was to be written, as a
    share of the largest number of the tensor."""

    num_tensors: int
    difference: float


def write_model(source: Source, file: str | Path, outtype: OutType = "f16") -> Written:
    """Write the model with the adapter merged into it (or the model that full-parameter training left).

    Raises:
        InputError: no model can be equal to the adapter, or models of this kind are not written here.
    """
    path = _checked(file)
    if source.is_adapter:
        source.mergeable("--merged")
    folder = Path(model_path(source.model_name))
    names = GgufNames(load_config(str(folder), source.trust_remote_code))
    if source.is_adapter:
        model, tokenizer, *_ = merged_model(source, "--merged")
    else:
        model, tokenizer = source.load(), source.tokenizer()
    tied = model.config.tie_word_embeddings
    tensors = {
        names.of(name): names.ordered(name, value.numpy())
        for name, value in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }

    def describe(writer: Any) -> None:
        writer.add_type("model")
        writer.add_name(source.path.resolve().parent.name if source.run else source.path.name)
        add_sizes(writer, model.config)
        add_tokenizer(writer, tokenizer, model.config.vocab_size, folder)

    return _write(path, names.kind.name, describe, tensors, outtype)


def write_adapter(source: Source, file: str | Path, outtype: OutType = "f32") -> Written:
    """Write a LoRA adapter for llama.cpp's `--lora`, which adds it to the base model's own GGUF file as that is loaded.
    An activated one is written with its invocation, from which on llama-server has it act.

    Raises:
        InputError: it is no LoRA, or models of this kind are not written here.
    """
    path = _checked(file)
    spec = source.lora("--gguf")
    if outtype == "q8_0":
        raise InputError("--outtype q8_0 is for whole models: an adapter's matrices are small; take f16 or f32")
    if spec.modules_to_save:
        raise InputError(f"--gguf: {source.path} has a classification head, which a GGUF file of an adapter has not")
    names = GgufNames(load_config(model_path(source.model_name), source.trust_remote_code))
    tensors: dict[str, np.ndarray] = {}
    for name, value in source.adapter.theta.items():
        assert is_matrix(name)
        module, _, matrix = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
        if matrix == "lora_B":  # one alpha for the whole file, over each module's rank: what differs goes into B
            rank, scaling = rank_and_scaling(module, spec)
            value = names.ordered(f"{module}.weight", value) * np.float32(scaling * rank / spec.alpha)
        tensors[f"{names.of(f'{module}.weight')}.{matrix.lower()}"] = value

    def describe(writer: Any) -> None:
        from gguf import GGUFValueType, Keys

        writer.add_type("adapter")
        writer.add_string(Keys.Adapter.TYPE, "lora")
        writer.add_float32(Keys.Adapter.LORA_ALPHA, float(spec.alpha))
        if spec.invocation_tokens is not None:
            key, tokens = Keys.Adapter.ALORA_INVOCATION_TOKENS, list(spec.invocation_tokens)
            writer.add_key_value(key, tokens, GGUFValueType.ARRAY, GGUFValueType.UINT32)

    return _write(path, names.kind.name, describe, tensors, outtype)


def _checked(file: str | Path) -> Path:
    if importlib.util.find_spec("gguf") is None:
        raise InputError("--gguf: the package gguf, which writes such files, is not installed; pip install gguf")
    path = file_of(file, "--gguf")
    if not is_gguf(str(path)):
        raise InputError(f"--gguf: the name of a GGUF file ends in .gguf, got {path}")
    return path


def _write(
    path: Path, architecture: str, describe: Callable[[Any], None], tensors: Mapping[str, np.ndarray], outtype: OutType
) -> Written:
    """Write the file and read it back."""
    from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter, LlamaFileType, quants

    file_type = {
        "f32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16, "bf16": LlamaFileType.MOSTLY_BF16,
        "q8_0": LlamaFileType.MOSTLY_Q8_0,
    }[outtype]  # fmt: skip

    def kind_of(value: np.ndarray) -> GGMLQuantizationType:
        """Norms and biases stay in float32, and so does what is not in whole blocks."""
        kind = GGMLQuantizationType[outtype.upper()]
        fits = value.ndim > 1 and (outtype != "q8_0" or value.shape[-1] % 32 == 0)
        return kind if fits else GGMLQuantizationType.F32

    found: list[Written] = []

    def write(new: Path) -> None:
        writer = GGUFWriter(new, architecture)
        describe(writer)
        writer.add_file_type(file_type)
        writer.add_quantization_version(GGML_QUANT_VERSION)
        for name, value in tensors.items():
            kind = kind_of(value)
            writer.add_tensor(name, quants.quantize(np.ascontiguousarray(value), kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        found.append(_read_back(new, tensors, LIMITS[outtype]))

    try:
        write_whole(path, write)
    except OSError as error:
        raise InputError(f"--gguf: cannot write {path}: {error.strerror}") from error
    return found[0]


def _read_back(file: Path, tensors: Mapping[str, np.ndarray], limit: float) -> Written:
    """Compare what a file holds with what was to be written.

    Raises:
        InputError: a tensor is missing, or further away than its precision explains.
    """
    from gguf import GGUFReader, quants

    read = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    if read.keys() != tensors.keys():
        raise InputError(f"--gguf: {file} does not hold the tensors that were written")
    largest = 0.0
    for name, value in tensors.items():
        stored = quants.dequantize(read[name].data, read[name].tensor_type).reshape(value.shape)
        size = float(np.abs(value).max()) or 1.0
        largest = max(largest, float(np.abs(stored - value).max()) / size)
        if not largest <= limit:
            raise InputError(
                f"--gguf: {name} cannot be stored in this precision: its numbers, up to {size:.3g}, come back "
                f"{largest:.2g} of that away; use --outtype f32"
            )
    return Written(len(tensors), largest)
