"""Quantised weights: how a model's are, and what bitsandbytes needs to be told to make and run them.

The kinds are nf4 (Dettmers et al., 2023, arXiv 2305.14314) and LLM.int8() (Dettmers et al., 2022, arXiv 2208.07339), of
the linear layers but the head. Models that come quantised by other methods keep theirs.
"""

import importlib.util
import logging
from typing import Literal

import torch
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from zotune.errors import InputError


def quantization_method(config: PretrainedConfig) -> str | None:
    """How the model's weights are quantised, by transformers' name of the method; None: they are not."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    return str(settings.get("quant_method") if isinstance(settings, dict) else settings.quant_method.value)


def check_bitsandbytes(what: str) -> None:
    """Raises:
    InputError: bitsandbytes is not installed, which `what` needs.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f'{what}: bitsandbytes is not installed; pip install "zotune[quantization]"')


def quantization_settings(bits: Literal[4, 8], dtype: torch.dtype) -> BitsAndBytesConfig:
    """What transformers takes to quantise a model as it is read, for products in `dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=False,
        bnb_4bit_compute_dtype=dtype,
    )


def silence_casts() -> None:
    """No more of the line that bitsandbytes logs for every product, which casts its inputs to float16."""
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_says_more_than_a_cast)


def compute_in_own_dtype(model: PreTrainedModel) -> None:
    """Where a CPU has AVX512-BF16, bitsandbytes would compute in bfloat16 whatever the model's dtype is."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False


def _says_more_than_a_cast(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("MatMul8bitLt: inputs will be cast")
