"""What a pass leaves behind of each block at the scored tokens, and the way back through a block from there.

Beside attention, all that a block does it does to each token by itself. So the block is computed again for the scored
tokens alone, with what attention gave in place of attention, and differentiated: a block at a time, by PyTorch, with
whatever norms, feed-forward parts and residual connections the model's own code has.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zotune.engine.torch.blocks import attention_of, state_into, state_out, with_state_into, with_state_out

KEPT_PROMPTS = ("past_key_values", "past_key_value", "layer_past", "prompt_kv")  # in what blocks are called with


@dataclass
class Visit:
    """A block in one pass.

    Args:
        state: what went into it [rows, tokens, width].
        args, kwargs: all that it was called with.
        attended: what its attention gave, in the form of that [rows, tokens, width].
    """

    state: torch.Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    attended: Any = None

    @classmethod
    def of(cls, places: tuple[torch.Tensor, torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> "Visit":
        """Of the tokens at `places`; attention has yet to come."""
        tokens = state_into(args, kwargs).shape[:2]

        def picked(value: Any) -> Any:
            return value[places] if torch.is_tensor(value) and value.shape[:2] == tokens else value

        args = tuple(map(picked, args))
        kwargs = {name: None if name in KEPT_PROMPTS else picked(value) for name, value in kwargs.items()}
        return cls(state_into(args, kwargs), args, kwargs)

    def again(self, block: nn.Module, state: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """What the block makes of them [rows, tokens, width]."""
        attention: Any = attention_of(block)
        attention.forward = lambda *args, **kwargs: with_state_out(self.attended, attended)
        try:
            args, kwargs = with_state_into(self.args, self.kwargs, state)
            return state_out(block(*args, **kwargs))
        finally:
            del attention.forward

    def back(
        self, block: nn.Module, gradient: torch.Tensor, modules: Mapping[str, nn.Module]
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Gradients [n, numbers] at what went in, apart from what goes through attention; at what attention gave; and
        at the outputs of modules of the block that lie outside attention.

        Args:
            gradient: at what comes out [n, width].
        """
        state = self.state.detach().requires_grad_()
        attended = state_out(self.attended).detach().requires_grad_()
        with _outputs(modules) as moves:
            output = self.again(block, state, attended)
        where = [state, attended, *moves.values()]
        found = torch.autograd.grad(output, where, gradient.view_as(output).to(output.dtype), allow_unused=True)
        by_token = [
            torch.zeros_like(at, dtype=torch.float32) if at_it is None else at_it.float()
            for at, at_it in zip(where, found, strict=True)
        ]
        of_state, of_attended, *of_outputs = (value.reshape(len(gradient), -1) for value in by_token)
        return of_state, of_attended, dict(zip(moves, of_outputs, strict=True))


@contextmanager
def _outputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """By name, zeros that are added to the modules' outputs, to differentiate by."""
    moves: dict[str, torch.Tensor] = {}

    def add(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
            moves[name] = torch.zeros_like(output, requires_grad=True)
            return output + moves[name]

        return hook

    hooks = [module.register_forward_hook(add(name)) for name, module in modules.items()]
    try:
        yield moves
    finally:
        for hook in hooks:
            hook.remove()
