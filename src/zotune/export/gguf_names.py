"""Models as GGUF files have them: which kinds of model, under which names, in which order their numbers lie.

The names are those of the package gguf. In the llama family llama.cpp rotates neighbouring
numbers of a head, where transformers rotates one half against the other: rows of q and k are put in that order.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PretrainedConfig

from zotune.errors import InputError


@dataclass(frozen=True)
class Kind:
    """`name` is that of the architecture in the file; `pairs` says whether rows of q and k are reordered."""

    name: str
    pairs: bool


KINDS = {
    "llama": Kind("llama", pairs=True),
    "mistral": Kind("llama", pairs=True),
    "qwen2": Kind("qwen2", pairs=False),
    "qwen3": Kind("qwen3", pairs=False),
}
"""By transformers' `model_type`."""


class GgufNames:
    """The names of one model's tensors in a GGUF file.

    Raises:
        InputError: the model is of a kind, or has a setting, that is not written here.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

        if config.model_type not in KINDS:
            raise InputError(
                f"--gguf: models of type {config.model_type} are not written as GGUF here, but those of "
                f"{', '.join(KINDS)}; llama.cpp's own convert_hf_to_gguf.py may know it"
            )
        self.config, self.kind = config, KINDS[config.model_type]
        _check_plain(config)
        architecture = next(arch for arch in MODEL_ARCH if MODEL_ARCH_NAMES[arch] == self.kind.name)
        self._names = get_tensor_name_map(architecture, config.num_hidden_layers)

    def of(self, name: str) -> str:
        """The name in the file of a parameter of transformers."""
        found = self._names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise InputError(f"--gguf: {name} has no name in GGUF files of {self.kind.name} models")
        return str(found)

    def ordered(self, name: str, value: np.ndarray) -> np.ndarray:
        """A parameter, or a LoRA matrix B of it, as [outputs, ...], with its rows as llama.cpp has them."""
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        module = name.rpartition(".")[0].rpartition(".")[2]
        if not self.kind.pairs or module not in heads:
            return value
        count = getattr(self.config, heads[module])
        return value.reshape(count, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def add_sizes(writer: Any, config: PretrainedConfig) -> None:
    """The sizes of a model, by the names that llama.cpp reads."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(_rope(config)["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def _rope(config: PretrainedConfig) -> dict[str, Any]:
    return dict(config.rope_parameters)


def _check_plain(config: PretrainedConfig) -> None:
    """Refuse what the file would not say, so that another model would be read from it."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    odd = {
        "rope_type": (_rope(config).get("rope_type", "default"), "default"),
        "sliding_window": (window, None),
        "hidden_act": (config.hidden_act, "silu"),
        "mlp_bias": (getattr(config, "mlp_bias", False), False),
    }
    for name, (value, plain) in odd.items():
        if value != plain:
            raise InputError(f"--gguf: a model with {name} {value!r} is not written as GGUF here; only {plain!r} is")
