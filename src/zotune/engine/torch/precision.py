"""A model of half precision computing in float32: what two ways of scoring differ by then is no rounding.

Each module's parameters are moved up as a pass reaches it, and forgotten behind it: no second model is held.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

HALVES = (torch.bfloat16, torch.float16)


def is_half(model: PreTrainedModel) -> bool:
    """Whether all its weights are of half precision, and none quantised."""
    return (
        all(parameter.dtype in (*HALVES, torch.float32) for parameter in model.parameters()) and model.dtype in HALVES
    )


def half_speedup() -> float:
    """How many times as fast a product in bfloat16 is here as one in float32, on the CPU."""
    seconds = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    operands = {dtype: (torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)) for dtype in seconds}
    for _ in range(8):  # in turn; of the first, libraries get ready
        for dtype, (inputs, weight) in operands.items():
            began = time.process_time()  # other processes that have the core meanwhile are not counted
            nn.functional.linear(inputs, weight)
            seconds[dtype] = min(seconds[dtype], time.process_time() - began)
    return seconds[torch.float32] / seconds[torch.bfloat16]


@contextmanager
def in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Inside, passes are in float32. A model whose own code asks for a dtype, or reads weights elsewhere, may raise."""
    before: list[tuple[nn.Module, Any]] = []
    for module in model.modules():
        if any(parameter is not None and parameter.dtype in HALVES for parameter in module._parameters.values()):
            before.append((module, vars(module).get("forward")))
            vars(module)["forward"] = partial(_forward, module, module.forward)
    try:
        yield
    finally:
        for module, forward in before:
            del vars(module)["forward"]
            if forward is not None:
                vars(module)["forward"] = forward


def _forward(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    own = dict(module._parameters)
    for name, parameter in own.items():
        if parameter is not None and parameter.dtype in HALVES:
            module._parameters[name] = nn.Parameter(parameter.float(), requires_grad=False)
    try:
        return forward(*args, **kwargs)
    finally:
        module._parameters.update(own)
