"""The blocks of a decoder, one behind the other in the residual stream: the state after a block goes into the next."""

from collections.abc import Container
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

MIXERS = ("attention", "mixer", "mamba", "deltanet", "shortconv", "recurrent")  # in the names of classes


def find_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The blocks, from the bottom to the top.

    Raises:
        TypeError: there is no list of as many as the configuration says.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if len(lists) != 1:
        raise TypeError(f"{type(model).__name__} has no list of its {count} blocks")
    return list(lists[0])


def writer_names(model: PreTrainedModel, within_parts: bool = False) -> tuple[str, ...]:
    """The names of the modules that write into the residual stream, as far as the structure shows: the last linear
    module with as many outputs as the state is wide, of each part of a block.

    Args:
        within_parts: without linear modules that are parts themselves. A block may call those with the tokens of all
            rows in one, as OPT's does, and PEFT's activated adapters cannot run there.

    Raises:
        TypeError: there are none.
    """
    width, writers = model.config.get_text_config().hidden_size, dict[nn.Module, None]()
    for block in find_blocks(model):
        for part in (
            *(() if within_parts else (block,)),
            *(child for child in block.children() if not isinstance(child, nn.Linear | Conv1D)),
        ):
            modules = part.named_children() if part is block else part.named_modules()
            linear = [(name, module) for name, module in modules if isinstance(module, nn.Linear | Conv1D)]
            wide = [module for _, module in linear if features(module)[1] == width]
            if wide:
                writers[wide[-1]] = None
    if not writers:
        raise TypeError(f"{type(model).__name__} has no module that writes into a residual stream")
    return _names_of(writers, model)


def _names_of(modules: Container[nn.Module], model: PreTrainedModel) -> tuple[str, ...]:
    """How the names of modules end, in as few parts as tell them from the other linear modules of a model."""
    named = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    others = [f".{name}" for name, module in named.items() if module not in modules]
    found = dict[str, None]()
    for name in (name for name, module in named.items() if module in modules):
        parts = name.split(".")
        endings = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        found[next(end for end in endings if not any(other.endswith(f".{end}") for other in others))] = None
    return tuple(found)


def attention_names(model: PreTrainedModel) -> tuple[str, ...]:
    """The names of the linear modules of attention.

    Raises:
        TypeError: a block does not have one module of attention.
    """
    modules = [found for block in find_blocks(model) for found in attention_of(block).named_modules()]
    return tuple({name.rpartition(".")[2]: None for name, module in modules if isinstance(module, nn.Linear | Conv1D)})


def features(module: nn.Module) -> tuple[int, int]:
    """How many numbers go into a linear module, and come out."""
    if isinstance(module, Conv1D):  # GPT-2's linear layer keeps its weight transposed
        return module.weight.shape[0], module.weight.shape[1]
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


def state_into(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The residual state among what a block is called with.

    Raises:
        TypeError: it is not where transformers' decoders have it.
    """
    state = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(state, torch.Tensor):
        raise TypeError("its blocks take no residual state")
    return state


def with_state_into(
    args: tuple[Any, ...], kwargs: dict[str, Any], state: torch.Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((state, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": state})


def state_out(output: Any) -> torch.Tensor:
    """The residual state among what a block gives."""
    state: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return state


def with_state_out(output: Any, state: torch.Tensor) -> Any:
    return (state, *output[1:]) if isinstance(output, tuple) else state


def attention_of(block: nn.Module) -> nn.Module:
    """The module of a block in which tokens see others: attention, or what hybrid models have in its place.

    Raises:
        TypeError: there is not one such module.
    """
    found, left = [], list(block.children())
    while left:
        module = left.pop()
        if any(kind in type(module).__name__.lower() for kind in MIXERS):
            found.append(module)
        else:
            left.extend(module.children())
    if len(found) != 1:
        raise TypeError(f"its blocks have {len(found)} modules of attention, instead of one")
    return found[0]
