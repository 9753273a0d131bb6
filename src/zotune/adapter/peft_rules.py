"""Which modules PEFT adapts by an adapter's settings, and with which rank and scale: asked of PEFT's own functions."""

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from zotune.adapter.spec import LoraSpec

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"


def is_all_linear(spec: LoraSpec) -> bool:
    targets = spec.target_modules
    return (targets if isinstance(targets, str) else targets[0] if len(targets) == 1 else "").lower() == ALL_LINEAR


def lora_config(spec: LoraSpec, **others: Any) -> "LoraConfig":
    """The settings of an adapter as PEFT has them."""
    from peft import LoraConfig

    targets, choice = spec.target_modules, spec.selection
    return LoraConfig(
        r=spec.rank,
        lora_alpha=_whole(spec.alpha),
        target_modules=ALL_LINEAR if is_all_linear(spec) else targets if isinstance(targets, str) else sorted(targets),
        exclude_modules=_text_or_list(choice.exclude_modules),
        layers_to_transform=list(choice.layers_to_transform) or None,
        layers_pattern=list(choice.layers_pattern) or None,
        rank_pattern=dict(choice.rank_pattern),
        alpha_pattern={pattern: _whole(alpha) for pattern, alpha in choice.alpha_pattern},
        use_rslora=choice.use_rslora,
        alora_invocation_tokens=list(spec.invocation_tokens) if spec.invocation_tokens is not None else None,
        fan_in_fan_out=spec.fan_in_fan_out,
        task_type=spec.task_type,
        modules_to_save=list(spec.modules_to_save) or None,
        **others,
    )


def peft_targets(model_type: str) -> tuple[str, ...]:
    """The names of the modules that PEFT adapts by default in models of a type; none where it has no default."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    found = KNOWN.get(model_type, ())
    return () if isinstance(found, str) else tuple(found)


def is_adapted(name: str, config: "LoraConfig") -> bool:
    """Whether PEFT adapts the module of this name, by settings other than all-linear."""
    from peft.tuners.tuners_utils import check_target_module_exists

    return bool(check_target_module_exists(config, name))


def rank_and_scaling(name: str, spec: LoraSpec) -> tuple[int, float]:
    """The rank of a module, and what its product is multiplied by."""
    rank, alpha = (
        _by_pattern(name, pattern, default)
        for pattern, default in (
            (dict(spec.selection.rank_pattern), spec.rank), (dict(spec.selection.alpha_pattern), spec.alpha)
        )
    )  # fmt: skip
    return int(rank), alpha / (math.sqrt(rank) if spec.selection.use_rslora else rank)


def is_bypassed(name: str, model: "PreTrainedModel") -> bool:
    """Whether the model's own code may use the weight of a module without calling it, as Mamba's kernels do."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    try:
        _check_lora_target_modules_mamba(LoraConfig(), model, name.rpartition(".")[2])
    except ValueError:
        return True
    return False


def goes_to_experts(name: str, model: "PreTrainedModel") -> bool:
    """Whether PEFT takes a target of this name for the fused experts or the router of a mixture of experts.

    In models whose experts transformers has fused, PEFT reads the old names of their modules so, wherever they stand.
    """
    try:
        return bool(_parameters_of([name.rpartition(".")[2]], model))
    except ValueError:  # it wants the other half of what was fused
        return True


def all_linear_has_experts(model: "PreTrainedModel") -> bool:
    """Whether PEFT takes all-linear for the fused experts of a mixture of experts and their router too."""
    return bool(_parameters_of(ALL_LINEAR, model))


def _parameters_of(targets: list[str] | str, model: "PreTrainedModel") -> Collection[str]:
    """What PEFT adapts by these names that is a parameter, and no module."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    if get_checkpoint_conversion_mapping(model.config.model_type) is None:
        return ()
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=targets)
    convert_peft_config_for_transformers(config, model=model, conversions=None)
    return config.target_parameters or ()


def _by_pattern(name: str, pattern: dict[str, Any], default: float) -> Any:
    if not pattern:
        return default
    from peft.utils.other import get_pattern_key

    return pattern.get(get_pattern_key(list(pattern), name), default)


def _text_or_list(names: tuple[str, ...] | str) -> list[str] | str | None:
    return names if isinstance(names, str) else sorted(names) or None


def _whole(alpha: float) -> Any:
    """An integer where it is one: some readers of the format insist."""
    return int(alpha) if float(alpha).is_integer() else alpha
