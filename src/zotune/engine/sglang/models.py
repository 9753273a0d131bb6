"""Which base models may run: those whose log-probabilities the tests compare with transformers'.

SGLang runs what it does not know by a fallback to transformers, and its OPT replaces an activation that it does not
know by none at all. Both would train on other numbers without a word, so they are refused before weights are read.
"""

from collections.abc import Mapping
from typing import Any

from zotune.errors import InputError

NAMES = (
    "sglang.srt.models.opt:OPTForCausalLM",
    "sglang.srt.models.opt:get_activation",
    "sglang.srt.models.llama:LlamaForCausalLM",
    "sglang.srt.models.qwen2:Qwen2ForCausalLM",
    "sglang.srt.models.qwen3:Qwen3ForCausalLM",
)
ARCHITECTURES = tuple(name.partition(":")[2] for name in NAMES if name.endswith("ForCausalLM"))
OPT_ACTIVATIONS = ("relu", "gelu", "sigmoid")


def check_config(config: Any, options: Mapping[str, Any]) -> None:
    """`config` is transformers' configuration of the model, `options` are SGLang's.

    Raises:
        InputError: SGLang would run the model by a fallback, or not as transformers does.
    """
    architectures = tuple(getattr(config, "architectures", None) or ())
    if not set(architectures) & set(ARCHITECTURES):
        raise InputError(
            f"--engine sglang: {' '.join(architectures) or 'a model without a named architecture'} is not among the "
            f"models that were compared with transformers ({', '.join(ARCHITECTURES)}); use --engine torch"
        )
    if options.get("model_impl", "auto") not in ("auto", "sglang"):
        raise InputError("--sglang.model-impl: only SGLang's own models take an adapter in place; leave it out")
    activation = getattr(config, "activation_function", None)
    if "OPTForCausalLM" in architectures and str(activation).lower() not in OPT_ACTIVATIONS:
        raise InputError(
            f"--engine sglang: SGLang's OPT knows the activations {', '.join(OPT_ACTIVATIONS)} and would leave out "
            f"this model's {activation!r} without a word; use --engine torch"
        )


def check_loaded(model: Any) -> None:
    """The class that SGLang chose, in case it is not the one that the name promises."""
    if type(model).__name__ not in ARCHITECTURES:
        raise InputError(
            f"--engine sglang: SGLang runs this model as {type(model).__name__}, by a fallback; use --engine torch"
        )
