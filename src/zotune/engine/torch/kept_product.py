"""Products with what does not change with theta (weights, KV of prompts), differentiated by their other factor alone.

In forward mode PyTorch's own rule gives both factors a derivative: a factor that has none gets one of zeros, as large
as itself, and `vmap` copies it for every direction. Here the derivatives of all directions are one product.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class KeptProduct(torch.autograd.Function):
    """left @ kept; `kept` has two dimensions, or as many as `left`."""

    @staticmethod
    def forward(left: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        return left @ kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
        ctx.set_materialize_grads(False)  # no zeros of the size of weights
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def jvp(ctx: Any, left_tangent: torch.Tensor, _: None) -> torch.Tensor:
        (kept,) = ctx.saved_tensors
        return KeptProduct.apply(left_tangent, kept)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], left: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, int]:
        if kept.dim() == 2:
            return KeptProduct.apply(left, kept), in_dims[0]
        left = left.movedim(in_dims[0], -3)
        product = KeptProduct.apply(left.flatten(-3, -2), kept)
        return product.unflatten(-2, left.shape[-3:-1]), product.dim() - 2


class RegatheredProduct(torch.autograd.Function):
    """left @ kept() in reverse mode: KV that lies in several runs is joined again on the way back, so that no copy of
    it is held for that."""

    @staticmethod
    def forward(left: torch.Tensor, kept: Callable[[], torch.Tensor]) -> torch.Tensor:
        return torch.bmm(left, kept())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, Callable[[], torch.Tensor]], output: torch.Tensor) -> None:
        ctx.kept = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.bmm(gradient, ctx.kept().transpose(1, 2)), None


class KeptWeights(TorchFunctionMode):
    """Inside, linear layers are products with kept weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            return _linear(*args, **(kwargs or {}))
        if func is torch.addmm and not kwargs:  # GPT-2's linear layer
            bias, inputs, weight = args
            return KeptProduct.apply(inputs, weight) + bias
        return func(*args, **(kwargs or {}))


def _linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    product = KeptProduct.apply(input, weight.T)
    return product if bias is None else product + bias
