"""Gradients by the lens: one forward pass, and no way back through the network.

The record of autograd begins at the last residual state of the scored tokens: it has the final norm, the head and the
objective. What it gives there, the lens carries to the outputs of the adapted modules; B's gradient is its product
with A x, which the pass has computed anyway.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from zotune.engine.torch.blocks import find_blocks, state_out, with_state_out
from zotune.engine.torch.head import ScoredHead
from zotune.engine.torch.layers import TrainedLayers
from zotune.engine.torch.lora import LoraLayers
from zotune.zo.protocol import AT_THETA, Cotangents, Example, Scores, Theta


class Watch:
    """What passes leave behind while it is open: the last residual states, and A x of the adapted modules.

    Args:
        head: picks the scored tokens; None: all tokens are kept.
    """

    def __init__(self, model: PreTrainedModel, layers: LoraLayers, head: ScoredHead | None = None) -> None:
        self.model, self.layers, self.head = model, layers, head
        self.states: torch.Tensor | None = None  # [rows, tokens, width], where the record begins
        self.positions: torch.Tensor | None = None  # of those tokens in their rows, where they were picked
        self.low: dict[str, torch.Tensor] = {}  # [rows, tokens, rank]

    @contextmanager
    def open(self) -> Iterator[None]:
        hooks = [find_blocks(self.model)[-1].register_forward_hook(self._begin_record)]
        hooks += [
            module.register_forward_pre_hook(partial(self._keep, name)) for name, module in self.layers.modules.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def seen(
        self, compute: Callable[[], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, dict[str, torch.Tensor]]:
        """What a pass computes, and the states, their positions and A x in it."""
        with torch.no_grad():  # until the record begins
            computed = compute()
        assert self.states is not None
        taken = computed, self.states, self.positions, self.low
        self.states, self.positions, self.low = None, None, {}
        return taken

    def _keep(self, name: str, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if self.layers.active:
            matrix = self.layers.tensors[tensor_name(name, "A")][0]  # [inputs, rank]
            inputs = args[0]
            if self._places is not None:
                rows, places = self._places
                inputs = inputs.reshape(len(rows), -1, inputs.shape[-1])[rows, places]
            self.low[name] = inputs.float() @ matrix

    def _begin_record(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not self.layers.active:
            return output
        torch.set_grad_enabled(True)  # for what follows of the pass
        state = state_out(output)
        if self._places is None:
            self.states = state.float().detach().requires_grad_()
            return with_state_out(output, self.states.to(state.dtype))
        self.positions = self._places[1]
        self.states = state[self._places].float().detach().requires_grad_()
        return with_state_out(output, state.index_put(self._places, self.states.to(state.dtype)))

    @property
    def _places(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        positions = self.head.positions if self.head else None
        if positions is None:
            return None
        return torch.arange(len(positions), device=positions.device)[:, None], positions


class Record:
    """The passes of a batch, recorded from the last residual states on."""

    def __init__(self, watch: Watch, parts: Sequence[Part], batch: Sequence[Example], theta: Theta) -> None:
        self._model, self._parts = watch.model, parts
        with torch.inference_mode(False), frozen(watch.model), watch.open():
            watch.layers.place(theta, [AT_THETA])
            self._seen = [watch.seen(part.compute) for part in parts]
        self.scores = _whole(parts, [log_probs.detach() for log_probs, *_ in self._seen], batch)

    def gradients(self, cotangents: Cotangents) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        """Of each pass: those of sum(cotangents * log_probs) at the last residual states [tokens, width], and A x
        [tokens, rank] of the modules."""
        weights, gradients = cotangents(self.scores), []
        for part, (log_probs, states, positions, low) in zip(self._parts, self._seen, strict=True):
            of_tokens = torch.from_numpy(weights[part.places[:, 0], part.places[:, 1]]).to(log_probs)
            with torch.inference_mode(False), torch.enable_grad(), frozen(self._model):  # part is computed again
                (found,) = torch.autograd.grad(log_probs, states, of_tokens, retain_graph=True)
            if positions is not None:  # rows are filled up with their first
                filling = positions == positions[:, :1]
                filling[:, 0] = False
                found = found.masked_fill(filling[..., None], 0.0)
            by_token = {name: value.reshape(-1, value.shape[-1]) for name, value in low.items()}
            gradients.append((found.flatten(0, -2), by_token))
        return gradients


def scores_and_lens_gradient(
    watch: Watch, parts: Sequence[Part], batch: Sequence[Example], theta: Theta, cotangents: Cotangents
) -> tuple[Scores, Theta]:
    """Scores at theta, and the gradient of sum(cotangents * log_probs) for B of every module, in float32."""
    spec, lens = watch.layers.spec, watch.layers.lens
    assert lens is not None
    record = Record(watch, parts, batch, theta)
    gradient = {name: np.zeros(shape, dtype=np.float32) for name, shape in watch.layers.shapes.items()}
    for at_the_top, low in record.gradients(cotangents):
        for name, of_output in lens.back(at_the_top):
            product = of_output.T @ low[name]
            gradient[tensor_name(name, "B")] += rank_and_scaling(name, spec)[1] * product.cpu().numpy()
    return record.scores, gradient


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
    if not isinstance(layers, LoraLayers) or layers.spec.peft_type != "lora_fa":
        return "the lens gives the gradient of LoRA's B alone, with A frozen (--tuning lora_fa)"
    return "no lens has been measured" if layers.lens is None else None
