"""Which kind of language model a model is: a causal one, or a masked one, whose tokens see the whole text."""

from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

_PRETRAINED = ("ForMaskedLM", "ForPreTraining")  # how the classes of masked models end


def is_masked_config(config: PretrainedConfig) -> bool:
    """Whether a configuration is that of a masked language model. Many kinds have both: a folder's says which it is."""
    if config.is_encoder_decoder or getattr(config, "is_decoder", False):
        return False
    named = tuple(config.architectures or ())
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and any(name.endswith(_PRETRAINED) for name in named)


def is_masked(model: PreTrainedModel) -> bool:
    """Whether a loaded model is a masked language model."""
    return type(model).__name__.endswith(_PRETRAINED) and not model.config.is_encoder_decoder
