"""Quantised base models, by bitsandbytes: nf4 (Dettmers et al., 2023, arXiv 2305.14314) or LLM.int8() (Dettmers et al.,
2022, arXiv 2208.07339), made as weights are read, and folders that are quantised already.
"""

import importlib.util
import logging
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from zotune.errors import InputError


def quantization_options(
    own: str | None, asked: str | None, model: str, dtype: torch.dtype, device: str
) -> dict[str, Any]:
    """What `from_pretrained` is told: `own` is how the weights lie there, `asked` is nf4, int8 or None.

    Raises:
        InputError: both, or bitsandbytes is not installed.
    """
    if own and asked:
        raise InputError(f"--quantization {asked}: {model} is quantised already ({own}); leave it out")
    if own == "bitsandbytes":
        check_bitsandbytes(f"--model: {model} is quantised")
    options: dict[str, Any] = {}
    if asked:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=asked == "nf4",
            load_in_8bit=asked == "int8",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=False,
            bnb_4bit_compute_dtype=dtype,
        )
    if own or asked:  # quantised where they will stay: such weights do not move
        options["device_map"] = {"": torch.device(device)}
    if asked == "int8" or own == "bitsandbytes":  # a line for every product, which casts its inputs to float16
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(_says_more_than_a_cast)
    return options


def keep_dtype(model: PreTrainedModel, dtype: str) -> None:
    """Where a CPU has AVX512-BF16, bitsandbytes would compute in bfloat16 whatever the dtype."""
    if dtype != "bfloat16":
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                vars(module)["support_avx512bf16_for_cpu"] = False


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


def _says_more_than_a_cast(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("MatMul8bitLt: inputs will be cast")
