"""The modules of a model that an adapter is on: those that PEFT adapts by the same settings, or a refusal.

What PEFT adapts and zotune cannot is refused where it is named, and left out of all-linear; the adapter then names its
modules one by one, so that PEFT takes no others when it loads what was trained.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from zotune.adapter.peft_rules import (
    ALL_LINEAR,
    all_linear_has_experts,
    goes_to_experts,
    is_adapted,
    is_all_linear,
    is_bypassed,
    lora_config,
    peft_targets,
)
from zotune.adapter.spec import LoraSpec
from zotune.errors import InputError

logger = logging.getLogger("zotune")

USUAL = ("q_proj", "v_proj")  # those of LoRA's paper


def resolve_targets(model: PreTrainedModel, spec: LoraSpec) -> tuple[LoraSpec, dict[str, nn.Module]]:
    """The adapted modules by their names, and the settings by which PEFT adapts the same ones.

    Raises:
        InputError: the settings choose no module, or one that cannot be adapted.
    """
    if not spec.target_modules:
        return spec, {}
    if is_all_linear(spec):
        return _all_linear(model, spec)
    config = lora_config(spec)
    chosen = {name: module for name, module in model.named_modules() if name and is_adapted(name, config)}
    if not chosen:
        kind = type(model).__name__
        if isinstance(spec.target_modules, str):
            raise InputError(
                f"--target-modules: the regular expression {spec.target_modules!r} matches the whole name of no module "
                f"of {kind} that is not left out"
            )
        check_targets(model, spec.target_modules)
        raise InputError(f"--target-modules: exclude_modules or layers_to_transform leave no module of {kind}")
    for name, module in chosen.items():
        if (obstacle := _obstacle(name, module, model)) is not None:
            raise InputError(f"--target-modules: {name} of {type(model).__name__} {obstacle}")
    return spec, chosen


def usual_targets(model: PreTrainedModel) -> tuple[str, ...]:
    """The modules that LoRA adapts where nobody names any: those of its paper, by whatever name the model has them, or
    what PEFT has for this kind of model."""
    linear = {
        name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)
    }
    known = (USUAL, peft_targets(model.config.model_type), ("query", "value"))
    return next((names for names in known if names and linear.issuperset(names)), USUAL)


def check_targets(model: PreTrainedModel, targets: Sequence[str]) -> None:
    """Refuse names of which one matches no linear module.

    Raises:
        InputError: lists the names that exist.
    """
    if [target.lower() for target in targets] == [ALL_LINEAR]:
        return
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise InputError(
                f"--target-modules: {target!r} matches no linear module of {type(model).__name__}; "
                f"it has {', '.join(known)} (or all-linear)"
            )


def _all_linear(model: PreTrainedModel, spec: LoraSpec) -> tuple[LoraSpec, dict[str, nn.Module]]:
    """All but the output layer, as in PEFT."""
    head, config = model.get_output_embeddings(), lora_config(replace(spec, target_modules=r".*"))
    linear: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and is_adapted(name, config)
    }
    obstacles = {name: _obstacle(name, module, model) for name, module in linear.items()}
    chosen = {name: module for name, module in linear.items() if obstacles[name] is None}
    if not chosen:
        raise InputError(f"--target-modules all-linear: {type(model).__name__} has no linear module to adapt")
    left_out = sorted({name.rpartition(".")[2] for name in linear.keys() - chosen.keys()})
    if all_linear_has_experts(model):
        left_out.append("the fused experts and their router")
    if not left_out:
        return spec, chosen
    logger.info("--target-modules all-linear is not all that PEFT has in it: without %s", ", ".join(left_out))
    return replace(spec, target_modules=tuple(chosen)), chosen


def _obstacle(name: str, module: nn.Module, model: PreTrainedModel) -> str | None:
    """Why a module cannot be adapted, in words that go on from its name."""
    if not isinstance(module, nn.Linear | Conv1D):
        return f"is a {type(module).__name__}; only linear modules can be adapted"
    if module is model.get_output_embeddings():
        return "is the output layer, which is computed for scored tokens alone; leave it out"
    if not _maps_vectors(module):
        return "gives more than a product with its weight, as a router of experts does; leave it out"
    if goes_to_experts(name, model):
        return "has a name that PEFT reads as that of fused experts or of their router; leave it out"
    if is_bypassed(name, model):
        return "has a weight that Mamba's kernels use past the module; leave it out"
    return None


def _maps_vectors(module: nn.Linear | Conv1D) -> bool:
    """Whether a linear module with code of its own in the model still gives a vector for a vector."""
    if not type(module).__module__.startswith(("transformers.models.", "transformers_modules.")):
        return True
    assert isinstance(module, nn.Linear)
    with torch.no_grad():
        try:
            output = module(module.weight.new_zeros(1, module.in_features))
        except Exception:  # whatever that code is made for, it is not this
            return False
    return isinstance(output, torch.Tensor) and output.shape == (1, module.out_features)
