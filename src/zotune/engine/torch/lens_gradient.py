"""Gradients by the lens: one forward pass, and a way back that few tokens take, a block at a time.

In scope activated those are the tokens that the adapter acts on, and the gradient is exact: prompts do not change. In
scope everywhere they are the scored tokens, and what they change through other tokens is left out.

The record of autograd begins at the last residual state of these tokens: it has the final norm, the head and the
objective. What it gives there goes back through each block, which is computed again for the few (`visits.py`). Of what
arrives at a module's output, g, and its input x, LoRA's gradients are sums over these tokens: g (A x)' for B and
(B' g) x' for A, times its scaling.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from zotune.adapter.peft_rules import rank_and_scaling
from zotune.adapter.spec import tensor_name
from zotune.engine.scores import empty_scores
from zotune.engine.torch.backward import Part, frozen
from zotune.engine.torch.blocks import attention_of, find_blocks, state_out, with_state_out
from zotune.engine.torch.float_stream import FloatStream
from zotune.engine.torch.layers import TrainedLayers
from zotune.engine.torch.lens import Lens, carried
from zotune.engine.torch.looks import Look, looking
from zotune.engine.torch.lora import LoraLayers
from zotune.engine.torch.model_kind import sees_all
from zotune.engine.torch.visits import Visit
from zotune.zo.protocol import AT_THETA, Cotangents, Example, Scores, Theta


@dataclass
class Seen:
    """What one pass left behind, at the tokens that the way back takes.

    Args:
        log_probs: what it computed.
        states: the last residual states [rows, tokens, width], where the record begins.
        positions: of the tokens in their rows [rows, tokens]; rows are filled up with their first.
        visits: of each block.
        inputs: of modules whose block will not show theirs again [rows * tokens, inputs].
        mask: which of the tokens have the adapter; None: all.
        float_stream: whether the residual stream was in float32.
    """

    log_probs: torch.Tensor
    states: torch.Tensor
    positions: torch.Tensor
    visits: list[Visit]
    inputs: dict[str, torch.Tensor]
    mask: torch.Tensor | None
    float_stream: bool

    @property
    def filling(self) -> torch.Tensor:
        """Bool [rows * tokens, 1]."""
        filling = self.positions == self.positions[:, :1]
        filling[:, 0] = False
        return filling.view(-1, 1)

    @property
    def without_adapter(self) -> torch.Tensor:
        """Which tokens teach an adapter nothing: filling, and those that have none, bool [rows * tokens, 1]."""
        return self.filling if self.mask is None else self.filling | ~self.mask.reshape(-1, 1)


class Watch:
    """Sees what passes do.

    Args:
        scored: positions of the scored tokens in the rows of the pass that runs [rows, tokens].
        stream: what the model's residual stream is widened by.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: LoraLayers,
        scored: Callable[[], torch.Tensor],
        stream: FloatStream | None = None,
    ) -> None:
        self.model, self.layers, self.scored, self.stream = model, layers, scored, stream
        self.blocks = find_blocks(model)

    @contextmanager
    def open(self) -> Iterator[None]:
        hooks: list[Any] = [self.blocks[-1].register_forward_hook(self._begin_record)]
        for index, block in enumerate(self.blocks):
            hooks.append(block.register_forward_pre_hook(partial(self._enter, index), with_kwargs=True))
            hooks.append(attention_of(block).register_forward_hook(partial(self._attend, index)))
        hooks += [module.register_forward_pre_hook(partial(self._keep, name)) for name, module in self._kept()]
        try:
            causal = not sees_all(self.model)
            with looking(self._look, lambda: self._places if self.layers.active else None, causal):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def seen(self, compute: Callable[[], torch.Tensor]) -> Seen:
        """What a pass computes, and leaves behind. The last pass, where there are several."""
        self._visits: dict[int, Visit] = {}
        self._inputs: dict[str, torch.Tensor] = {}
        with torch.no_grad():  # until the record begins
            log_probs = compute()
        visits = [visit for _, visit in sorted(self._visits.items())]
        return Seen(log_probs, self._states, self._places[1], visits, self._inputs, self._mask, self._wide)

    @contextmanager
    def as_in(self, seen: Seen) -> Iterator[None]:
        """Inside, blocks compute the few tokens of a pass as they did there."""
        layers = self.layers
        before = layers.num_groups, layers.token_mask
        layers.num_groups, layers.token_mask, layers.float_stream = 1, seen.mask, seen.float_stream
        try:
            with self.stream.in_use(seen.float_stream) if self.stream else nullcontext():
                yield
        finally:
            layers.float_stream = False
            layers.num_groups, layers.token_mask = before

    def _enter(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.layers.active:
            if index == 0:
                positions, mask = self._positions(), self.layers.token_mask
                self._places = torch.arange(len(positions), device=positions.device)[:, None], positions
                self._mask = None if mask is None else mask[self._places]
                self._wide = self.layers.float_stream
            self._visits[index], self._index = Visit.of(self._places, args, kwargs), index

    def _positions(self) -> torch.Tensor:
        """Of the tokens that the way back takes [rows, tokens], filled up with the first of their row."""
        scored, adapted = self.scored(), self.layers.adapted
        if self.layers.spec.scope == "everywhere" or adapted is None:
            return scored
        chosen = adapted.clone()
        alone = ~chosen.any(dim=1)  # rows that the base model computes, and that nothing is learnt from
        chosen[alone, scored[alone, 0]] = True
        counts = chosen.sum(dim=1, keepdim=True)
        positions = chosen.int().argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
        filling = torch.arange(positions.shape[1], device=positions.device) >= counts
        return torch.where(filling, positions[:, :1], positions)

    def _look(self, look: Look) -> None:
        self._visits[self._index].look = look

    def _attend(self, index: int, module: nn.Module, args: Any, output: Any) -> None:
        if self.layers.active:
            self._visits[index].attended = with_state_out(output, state_out(output)[self._places])

    def _kept(self) -> Iterator[tuple[str, nn.Module]]:
        """The modules inside attention that is not computed again."""
        measured = self.layers.lens.through if self.layers.lens else ()
        inside = {module for index in measured for module in attention_of(self.blocks[index]).modules()}
        return ((name, module) for name, module in self.layers.modules.items() if module in inside)

    def _keep(self, name: str, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if self.layers.active:
            inputs = args[0].reshape(len(self._places[1]), -1, args[0].shape[-1])
            self._inputs[name] = inputs[self._places].flatten(0, 1).float()

    def _begin_record(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not self.layers.active:
            return output
        torch.set_grad_enabled(True)  # for what follows of the pass
        state = state_out(output)
        self._states = state[self._places].float().detach().requires_grad_()
        return with_state_out(output, state.index_put(self._places, self._states.to(state.dtype)))


class Record:
    """The passes of a batch, recorded from the last residual states on."""

    def __init__(self, watch: Watch, parts: Sequence[Part], batch: Sequence[Example], theta: Theta) -> None:
        self.watch, self._parts = watch, parts
        with torch.inference_mode(False), frozen(watch.model), watch.open():
            watch.layers.place(theta, [AT_THETA])
            self._head = watch.layers.head.tensors
            for tensor in self._head.values():
                tensor.requires_grad_()
            self.seen = [watch.seen(part.compute) for part in parts]
        self.of_head = {name: np.zeros(tensor.shape[1:], dtype=np.float32) for name, tensor in self._head.items()}
        self.scores = _whole(parts, [seen.log_probs.detach() for seen in self.seen], batch)

    def at_the_top(self, cotangents: Cotangents) -> list[torch.Tensor]:
        """Gradients of sum(cotangents * log_probs) at the last residual states of each pass [rows * tokens, width];
        those of a head's weights are in `of_head`."""
        weights, gradients = cotangents(self.scores), []
        for part, seen in zip(self._parts, self.seen, strict=True):
            of_tokens = torch.from_numpy(weights[part.places[:, 0], part.places[:, 1]]).to(seen.log_probs)
            with torch.inference_mode(False), torch.enable_grad(), frozen(self.watch.model):  # part is computed again
                found, *of_head = torch.autograd.grad(
                    seen.log_probs, [seen.states, *self._head.values()], of_tokens, allow_unused=bool(self._head)
                )
            for name, of_one in zip(self._head, of_head, strict=True):
                self.of_head[name] += 0.0 if of_one is None else of_one[0].cpu().numpy()
            gradients.append(found.flatten(0, 1).masked_fill(seen.filling, 0.0))
        return gradients


def scores_and_lens_gradient(
    watch: Watch, parts: Sequence[Part], batch: Sequence[Example], theta: Theta, cotangents: Cotangents
) -> tuple[Scores, Theta]:
    """Scores at theta, and the gradient of sum(cotangents * log_probs) for what is trained of A and B, in float32."""
    layers, lens = watch.layers, watch.layers.lens
    assert lens is not None
    record = Record(watch, parts, batch, theta)
    gradient = {name: np.zeros(shape, dtype=np.float32) for name, shape in layers.shapes.items()}
    with torch.inference_mode(False), torch.enable_grad(), frozen(watch.model):
        for at_the_top, seen in zip(record.at_the_top(cotangents), record.seen, strict=True):
            for name, of_output, inputs in _back(watch, lens, seen, at_the_top):
                scaling = rank_and_scaling(name, layers.spec)[1]
                key_a, key_b = tensor_name(name, "A"), tensor_name(name, "B")
                a, b = layers.tensors[key_a][0], layers.tensors[key_b][0]  # [inputs, rank], [rank, outputs]
                gradient[key_b] += scaling * (of_output.T @ (inputs @ a)).cpu().numpy()
                if key_a in gradient:
                    gradient[key_a] += scaling * ((of_output @ b.T).T @ inputs).cpu().numpy()
    return record.scores, gradient | record.of_head


def _back(
    watch: Watch, lens: Lens, seen: Seen, gradient: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """The gradients at the outputs of the modules and their inputs [rows * tokens, numbers], from the last one down."""
    names = {module: name for name, module in watch.layers.modules.items()}
    left, filling, without_adapter = len(names), seen.filling, seen.without_adapter
    for index in range(len(watch.blocks) - 1, -1, -1):
        block, visit, measured = watch.blocks[index], seen.visits.pop(), index in lens.through
        inside = set(attention_of(block).modules()) if measured else set()
        here = {names[module]: module for module in block.modules() if module in names}
        on_the_way = {name: module for name, module in here.items() if module not in inside}
        with watch.as_in(seen):
            gradient, of_attended, of_outputs, inputs = visit.back(block, gradient, on_the_way, measured)
        if of_attended is not None:
            gradient = gradient + carried(of_attended, lens.through[index])
            of_outputs |= {name: carried(of_attended, lens.within[name]) for name in here if name not in on_the_way}
        # Keys and values of filling are those of the tokens that it repeats, which have their gradients.
        gradient = gradient.masked_fill(filling, 0.0)
        for name, of_output in of_outputs.items():
            found = inputs[name] if name in inputs else seen.inputs[name]
            yield name, of_output.masked_fill(without_adapter, 0.0), found
        left -= len(here)
        if not left:
            return


def _whole(parts: Sequence[Part], log_probs: Sequence[torch.Tensor], batch: Sequence[Example]) -> Scores:
    """The scores of a batch, from the log-probabilities of its parts' tokens."""
    if len(parts) == 1:
        return parts[0].scores(log_probs[0])
    num_tokens, values = empty_scores(1, batch)
    for part, some in zip(parts, log_probs, strict=True):
        np.add.at(values[0], (part.places[:, 0], part.places[:, 1]), some.cpu().numpy())
    return Scores(values, num_tokens)


def why_no_lens(layers: TrainedLayers) -> str | None:
    """Why an engine has no gradients by the lens, or None."""
    if not isinstance(layers, LoraLayers) or layers.spec.peft_type not in ("lora", "lora_fa"):
        return "the lens gives the gradients of LoRA's A and B alone (--tuning lora or lora_fa)"
    return "no lens has been measured" if layers.lens is None else None
