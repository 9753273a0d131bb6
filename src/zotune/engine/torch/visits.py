"""What a pass leaves behind of each block at the few tokens that the way back takes, and the way back through a block.

Beside attention, all that a block does it does to each token by itself. So the block is computed again for the few
tokens alone, with attention again over what the pass looked at, or else with what attention gave in its place, and
differentiated: a block at a time, by PyTorch, with whatever norms, feed-forward parts and residual connections the
model's own code has.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zotune.engine.torch.blocks import attention_of, state_into, state_out, with_state_into, with_state_out
from zotune.engine.torch.looks import Look


@dataclass
class Visit:
    """A block in one pass.

    Args:
        state: what went into it [rows, tokens, width].
        args, kwargs: all that it was called with.
        attended: what its attention gave, in the form of that [rows, tokens, width].
        look: what its attention looked at, where it is of the usual kind.
    """

    state: torch.Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    attended: Any = None
    look: Look | None = None

    @classmethod
    def of(cls, places: tuple[torch.Tensor, torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> "Visit":
        """Of the tokens at `places`; attention has yet to come."""
        tokens = state_into(args, kwargs).shape[:2]

        def picked(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(picked, value))
            if hasattr(value, "get_seq_length"):  # the cache of what comes before
                return None
            if torch.is_tensor(value) and value.shape[1:2] == tokens[1:] and value.shape[0] in (1, tokens[0]):
                return value.expand(tokens[0], *value.shape[1:])[places]
            return value

        args = tuple(map(picked, args))
        kwargs = {name: picked(value) for name, value in kwargs.items() if name != "prompt_kv"}
        return cls(state_into(args, kwargs), args, kwargs)

    def again(self, block: nn.Module, state: torch.Tensor, attended: torch.Tensor | None = None) -> torch.Tensor:
        """What the block makes of them [rows, tokens, width], with what attention gave, or with attention again."""
        args, kwargs = with_state_into(self.args, self.kwargs, state)
        if attended is None:
            assert self.look is not None
            with self.look.again():
                return state_out(block(*args, **kwargs))
        attention: Any = attention_of(block)
        attention.forward = lambda *args, **kwargs: with_state_out(self.attended, attended)
        try:
            return state_out(block(*args, **kwargs))
        finally:
            del attention.forward

    def back(
        self, block: nn.Module, gradient: torch.Tensor, modules: Mapping[str, nn.Module], measured: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Gradients [n, numbers] at what went in; at what attention gave, where the way through it is measured, and
        is no part of the first; and at the outputs of modules of the block that lie on the way. Beside them, what goes
        into these modules.

        Args:
            gradient: at what comes out [n, width].
        """
        state = self.state.detach().requires_grad_()
        attended = state_out(self.attended).detach().requires_grad_() if measured else None
        with _outputs(modules) as (moves, inputs):
            output = self.again(block, state, attended)
        where = [state, *([] if attended is None else [attended]), *moves.values()]
        found = torch.autograd.grad(output, where, gradient.view_as(output).to(output.dtype), allow_unused=True)
        by_token = [
            (torch.zeros_like(at, dtype=torch.float32) if at_it is None else at_it.float()).reshape(len(gradient), -1)
            for at, at_it in zip(where, found, strict=True)
        ]
        of_attended = by_token.pop(1) if measured else None
        into = {name: value.detach().float().reshape(len(gradient), -1) for name, value in inputs.items()}
        return by_token[0], of_attended, dict(zip(moves, by_token[1:], strict=True)), into


@contextmanager
def _outputs(modules: Mapping[str, nn.Module]) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """By name, zeros that are added to the modules' outputs, to differentiate by; and the modules' inputs."""
    moves: dict[str, torch.Tensor] = {}
    inputs: dict[str, torch.Tensor] = {}

    def add(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            inputs[name] = args[0]
            moves[name] = torch.zeros_like(output, requires_grad=True)
            return output + moves[name]

        return hook

    hooks = [module.register_forward_hook(add(name)) for name, module in modules.items()]
    try:
        yield moves, inputs
    finally:
        for hook in hooks:
            hook.remove()
