"""Which kind of model a model is: a causal language model, or one whose tokens see the whole text, that is, a masked
language model, also with a classification head in place of its own, or its encoder alone."""

from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

_PRETRAINED = ("ForMaskedLM", "ForPreTraining")  # how the classes of masked models end
_CLASSIFIER = "ForSequenceClassification"


def is_masked_config(config: PretrainedConfig) -> bool:
    """Whether a configuration is that of a masked language model, or of an encoder alone. Many kinds have causal models
    too: a folder's configuration says which it is."""
    if config.is_encoder_decoder or getattr(config, "is_decoder", False):
        return False
    named, encoder = tuple(config.architectures or ()), MODEL_MAPPING_NAMES.get(config.model_type)
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    known = (*_PRETRAINED, _CLASSIFIER)
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and any(
        name.endswith(known) or name == encoder for name in named
    )


def sees_all(model: PreTrainedModel) -> bool:
    """Whether a loaded model's tokens see the whole text, by its class."""
    config, name = model.config, type(model).__name__
    if config.is_encoder_decoder or getattr(config, "is_decoder", False):
        return False
    known = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return name.endswith(_PRETRAINED) or (is_classifier(model) and known)


def is_classifier(model: PreTrainedModel) -> bool:
    """Whether a loaded model has a classification head."""
    return type(model).__name__.endswith(_CLASSIFIER)


def head_modules(model: PreTrainedModel) -> tuple[str, ...]:
    """The modules of a classifier that a masked model lacks, or may lack: all that stands beside its base model, and
    the pooler in that."""
    base = model.base_model_prefix
    beside = [name for name, child in model.named_children() if name != base and any(True for _ in child.parameters())]
    pooler = getattr(model.base_model, "pooler", None)
    return (*beside, *([f"{base}.pooler"] if pooler is not None else []))
