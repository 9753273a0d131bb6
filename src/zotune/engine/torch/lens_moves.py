"""Moves of what goes on in the blocks of a model, and how the output of attention answers.

In one pass, the probes side by side all enter each block in the state of the first of them, and all but the first are
moved along a direction, at one token. How the output of attention moves is an answer of as many numbers as the state
is wide; so one pass measures all blocks at once, each by itself.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from zotune.engine.torch.blocks import attention_of, state_into, state_out, with_state_into
from zotune.engine.torch.lora import LoraLayers

DISTANCE = 0.05  # of a move, in lengths of what is moved

Modules = Mapping[int, nn.Module]
"""By block, the module whose output is moved; none of a block: its input is."""


class Moves:
    """Hooks that move what goes on in each block, at the last token of each context, and add up how the output of its
    attention moves.

    Args:
        wanted: the blocks where something is moved.
        modules: those whose outputs are moved; none: the blocks' inputs are.
        size: of what is moved.
    """

    def __init__(
        self, blocks: list[nn.Module], wanted: list[int], modules: Modules, size: int, width: int, layers: LoraLayers
    ) -> None:
        self.blocks, self.modules, self.layers = blocks, modules, layers
        self.sums = {index: torch.zeros(size, width, device=layers.device) for index in wanted}
        self._counts = torch.zeros(size, device=layers.device)
        self._distances: torch.Tensor | None = None  # of the moves, where something was moved

    def begin(self, directions: torch.Tensor, which: torch.Tensor, signs: torch.Tensor) -> None:
        """The moves of the next pass: rows `which` of the directions [contexts, moves], each forth or back."""
        self.which, self.signs = which, signs
        self.moves = directions[which] * signs[..., None]
        self._counts += torch.bincount(which.flatten(), minlength=len(self._counts))

    @contextmanager
    def open(self) -> Iterator[None]:
        hooks: list[Any] = []
        for index, block in enumerate(self.blocks):
            hooks.append(block.register_forward_pre_hook(partial(self._enter, index), with_kwargs=True))
            if index in self.sums:
                hooks.append(attention_of(block).register_forward_hook(partial(self._read, index)))
                if self.modules:
                    hooks.append(self.modules[index].register_forward_hook(partial(self._move_output, index)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def mean(self, index: int) -> torch.Tensor:
        """Of the answers of a block to each direction [directions, width]."""
        return self.sums[index] / self._counts.clamp(min=1)[:, None]

    def _enter(self, index: int, module: nn.Module, args: Any, kwargs: Any) -> Any:
        state = state_into(args, kwargs)
        by_probe = self._by_probe(state)
        same = by_probe[:, :1].expand_as(by_probe).clone()
        self._lengths, self._distances = same[:, 0, -1].float().norm(dim=-1), None
        if index in self.sums and not self.modules:
            self._move(same)
        return with_state_into(args, kwargs, same.view_as(state))

    def _move_output(self, index: int, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        by_probe = self._by_probe(output.float()).clone()
        if by_probe.shape[-1] != self.sums[index].shape[1]:
            self._lengths = by_probe[:, 0, -1].norm(dim=-1)
        self._move(by_probe)
        moved = by_probe.view(output.shape)
        return moved if self.layers.float_stream else moved.to(output.dtype)

    def _read(self, index: int, module: nn.Module, args: Any, output: Any) -> None:
        if self._distances is None:
            raise TypeError("a module that is adapted takes no part in its block")
        last = self._by_probe(state_out(output))[:, :, -1].float()
        answers = (last[:, 1:] - last[:, :1]) / self._distances[:, None, None] * self.signs[..., None]
        self.sums[index].index_add_(0, self.which.flatten(), answers.flatten(0, 1))

    def _move(self, by_probe: torch.Tensor) -> None:
        self._distances = DISTANCE * self._lengths.clamp(min=1e-6)
        by_probe[:, 1:, -1] += (self._distances[:, None, None] * self.moves).to(by_probe.dtype)

    def _by_probe(self, state: torch.Tensor) -> torch.Tensor:
        """[contexts, probes, tokens, width]"""
        groups, moves, _ = self.moves.shape
        return state.reshape(groups, moves + 1, -1, state.shape[-1])
