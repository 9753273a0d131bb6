"""Models and tokenizers of transformers, from a hub id or a local folder.

Weights are read from safetensors only, and code that comes with a model runs only where `trust_remote_code` asks.
"""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from zotune.engine.torch.model_kind import head_modules, is_masked_config
from zotune.engine.torch.quantization import keep_dtype, quantization_method, quantization_options
from zotune.engine.torch.trained_head import start_head
from zotune.errors import InputError, first_line

logger = logging.getLogger("zotune")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(device: str) -> str:
    """`auto` is CUDA where there is one."""
    cuda = torch.cuda.is_available()
    if device.startswith("cuda") and not cuda:
        raise InputError(f"--device: {device} was asked for, but PyTorch sees no CUDA device here; use cpu")
    if device.startswith("mps") and not torch.backends.mps.is_available():
        raise InputError(f"--device: {device} was asked for, but PyTorch sees no such device here; use cpu")
    number = int(device.partition(":")[2] or 0) if device.startswith("cuda") else 0
    if cuda and number >= torch.cuda.device_count():
        raise InputError(f"--device: {device} is not among the {torch.cuda.device_count()} CUDA devices here")
    if device != "auto":
        return device
    return "cuda" if cuda else "cpu"


def load_config(model: str, trust_remote_code: bool = False) -> PretrainedConfig:
    """The model's configuration; reads no weights."""
    _check_path(model)
    with explained(model):
        return AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)


def load_tokenizer(model: str, trust_remote_code: bool = False) -> Tokenizer:
    _check_path(model)
    with explained(model):
        return AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)


def load_generation_config(model: str, config: PretrainedConfig) -> GenerationConfig:
    """How the model's makers generate with it: its generation_config.json, else what its configuration says."""
    try:
        return GenerationConfig.from_pretrained(model)
    except (OSError, ValueError):  # most often it has no such file
        return GenerationConfig.from_model_config(config)


def load_model(
    model: str,
    dtype: str,
    device: str,
    trust_remote_code: bool = False,
    quantization: str | None = None,
    num_labels: int | None = None,
    head_seed: int | None = None,
) -> PreTrainedModel:
    """The language model on `device` in `dtype` (a name of DTYPES), in evaluation mode.

    Args:
        quantization: quantise the linear layers but the head as they are read: nf4 or int8.
        num_labels: give a masked model a classification head over so many labels; what it lacks of that is zero.
        head_seed: draw that from this seed instead.

    Raises:
        InputError: the model cannot be loaded, lacks weights, or is quantised already where `quantization` is asked.
    """
    config = load_config(model, trust_remote_code)
    own = quantization_method(config)
    options = quantization_options(own, quantization, model, DTYPES[dtype], device)
    transformers.utils.logging.disable_progress_bar()
    with explained(model), _quiet(num_labels is not None):
        labels = {} if num_labels is None else {"num_labels": num_labels}
        result: Any = _auto_class(config, num_labels).from_pretrained(
            model, dtype=DTYPES[dtype], use_safetensors=True, trust_remote_code=trust_remote_code,
            output_loading_info=True, ignore_mismatched_sizes=True, **labels, **options,
        )  # fmt: skip
        loaded: PreTrainedModel = result[0]
        found, remedy = result[1], ""
        if num_labels is not None:
            found = without_head(loaded, found)
            if head_seed is not None:
                start_head(loaded, head_seed)
        elif is_masked_config(config):
            remedy = ": an encoder alone is trained with --head classification"
        check_weights(model, type(loaded).__name__, found, remedy)
        keep_dtype(loaded, dtype)
        if not options:
            loaded.to(torch.device(device))  # type: ignore[arg-type]  # the library's decorator hides the signature
    return loaded.eval()


@contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """Inside, transformers does not report that a new head is new."""
    before = transformers.utils.logging.get_verbosity()
    if quiet:
        transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)


def check_weights(model: str, kind: str, found: dict[str, Any], remedy: str = "") -> None:
    """transformers fills what a checkpoint lacks with random numbers, and says so in a warning."""
    lacking = sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])})
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise InputError(
            f"--model: {model} has no weights of the right shape for {', '.join(lacking[:3])}{more}, which {kind} needs"
            f"{remedy}"
        )
    if unused := sorted(found["unexpected_keys"]):
        logger.warning("--model: %s has weights that %s has no use for: %s", model, kind, ", ".join(unused[:3]))


def without_head(model: PreTrainedModel, found: dict[str, Any]) -> dict[str, Any]:
    """What was found of a classifier's weights, but for its head, and for a masked model's own head; what its head
    lacks becomes zero."""
    own = tuple(f"{name}." for name in head_modules(model))
    lacking = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    for name, parameter in model.named_parameters():
        if name in lacking and name.startswith(own):
            parameter.data.zero_()
    if any(name.startswith(own) for name in lacking):
        logger.info("head: new, over %d labels (%s has none)", model.config.num_labels, model.config.name_or_path)
    base = f"{model.base_model_prefix}."
    return {
        "missing_keys": [name for name in found["missing_keys"] if not name.startswith(own)],
        "mismatched_keys": [entry for entry in found["mismatched_keys"] if not entry[0].startswith(own)],
        "unexpected_keys": [name for name in found["unexpected_keys"] if name.startswith(base)],
    }


def empty_model(
    config: PretrainedConfig, trust_remote_code: bool = False, num_labels: int | None = None
) -> PreTrainedModel:
    """The model's modules and the shapes of its weights, without the weights."""
    with explained(str(config.name_or_path)), torch.device("meta"):
        if num_labels is not None:
            config = copy.deepcopy(config)
            config.num_labels = num_labels
        found = _auto_class(config, num_labels)
        model: PreTrainedModel = found.from_config(config, trust_remote_code=trust_remote_code)
    return model


def _auto_class(config: PretrainedConfig, num_labels: int | None) -> Any:
    if num_labels is not None:
        return AutoModelForSequenceClassification
    return AutoModelForMaskedLM if is_masked_config(config) else AutoModelForCausalLM


def context_length(config: PretrainedConfig) -> int | None:
    """The most tokens the model takes, or None where its configuration does not say."""
    config = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    return None


def masked_context_length(model: PreTrainedModel) -> int | None:
    """The same of a masked model: RoBERTa's and its kin have positions that no token takes."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return context_length(model.config)


def free_memory_bytes(device: torch.device) -> int:
    """What is free on the device, or in this machine for the CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _check_path(model: str) -> None:
    path = Path(model).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(f"--model: {model} is a folder without config.json, so not a transformers model")
    if not path.is_dir() and (model.startswith((".", "/", "~")) or model.count("/") > 1):
        raise InputError(f"--model: there is no folder {model}")


class explained:
    """Turns what transformers raises for a wrong or unreachable model into one sentence."""

    def __init__(self, model: str) -> None:
        self.model = model

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        # the libraries raise of every kind for what is wrong in files, or not installed
        if isinstance(error, Exception) and not isinstance(error, InputError):
            raise InputError(f"--model: {self.model!r} could not be loaded: {first_line(error)}") from error
