"""Probes of all parameters of a model, at the memory of inference: each layer's are made as the pass reaches it.

MeZO (Malladi et al., 2023) moves the whole model by eps z, back by -2 eps z and again by eps z, in place; every move
rounds, and in low precision what is left is not theta. Here parameters are never written by a pass: a layer
computes with weights theta + distance * z that are made beside it, piece by piece, and forgotten. Linear layers and
embeddings never hold more than a piece of them.
"""

import ctypes
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import record_function
from transformers import PreTrainedModel

from zotune.engine.torch.layers import TrainedLayers
from zotune.engine.torch.weights import ModelWeights
from zotune.zo.protocol import AT_THETA, Probe, Theta


class WholeModel(TrainedLayers):
    """All modules of one model that have parameters; theta is `weights`, and a pass takes one probe."""

    max_probes = 1
    why_no_gradients = (
        "a gradient of all parameters takes the memory of another model, and what this engine trains at the memory of "
        "inference are probes of them"
    )

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        _return_freed_blocks()
        self.weights = ModelWeights(model)
        self.shapes = self.weights.shapes
        self._probe = AT_THETA
        self._replaced: list[tuple[nn.Module, Any]] = []
        for module in model.modules():
            if any(parameter is not None for parameter in module._parameters.values()):
                self._replaced.append((module, vars(module).get("forward")))
                vars(module)["forward"] = partial(self._forward, module, module.forward)

    def place(self, theta: Theta, probes: Sequence[Probe]) -> None:
        assert theta is self.weights, "this engine trains its model's own parameters"
        (self._probe,) = probes

    def trial(self) -> tuple[Theta, list[Probe]]:
        return self.weights, [AT_THETA]

    def remove(self) -> None:
        for module, before in self._replaced:
            del vars(module)["forward"]
            if before is not None:
                vars(module)["forward"] = before
        self._replaced.clear()

    def _forward(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._probe.distance:
            return forward(*args, **kwargs)
        if type(module) is nn.Linear:
            return self._linear(module, *args, **kwargs)
        if type(module) is nn.Embedding and module.max_norm is None:
            return self._embedding(module, *args, **kwargs)
        before = dict(module._parameters)
        for name, parameter in before.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(self._whole(parameter), requires_grad=False)
        try:
            return forward(*args, **kwargs)
        finally:
            module._parameters.update(before)

    def _linear(self, module: nn.Linear, input: torch.Tensor) -> torch.Tensor:
        bias = None if module.bias is None else self._whole(module.bias)
        outputs = [
            F.linear(input, self._moved(name, module.weight), None if bias is None else bias[first:last])
            for name, first, last in self.weights.pieces[id(module.weight)]
        ]
        return torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0]

    def _embedding(self, module: nn.Embedding, input: torch.Tensor) -> torch.Tensor:
        output = module.weight.new_empty((*input.shape, module.embedding_dim))
        for name, first, last in self.weights.pieces[id(module.weight)]:
            here = (input >= first) & (input < last)
            if here.any():
                output[here] = self._moved(name, module.weight)[input[here] - first]
        return output

    def _whole(self, parameter: torch.Tensor) -> torch.Tensor:
        pieces = [self._moved(name, parameter) for name, _, _ in self.weights.pieces[id(parameter)]]
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def _moved(self, name: str, parameter: torch.Tensor) -> torch.Tensor:
        """A piece at the probe, in its parameter's dtype."""
        with record_function("zotune::noise"):
            point = self._probe.of({name: self.weights[name]})
            return torch.from_numpy(point[name]).to(parameter.device, parameter.dtype)


def _return_freed_blocks() -> None:
    """Have glibc give a block of a megabyte back when it is freed: kept for reuse, pieces in fp32 and in a lower
    precision add up to a tenth of a small model."""
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(-3, 10**6)  # M_MMAP_THRESHOLD
