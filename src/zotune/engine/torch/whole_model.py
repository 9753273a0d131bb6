"""Probes of all parameters of a model, at the memory of inference: each layer's are made as the pass reaches it.

MeZO (Malladi et al., 2023) moves the whole model by eps z, back by -2 eps z and again by eps z, in place; every move
rounds, and in low precision what is left is not theta. Here parameters are never written by a pass: a layer
computes with weights theta + distance * z that are made beside it, piece by piece, and forgotten. Linear layers and
embeddings never hold more than a piece of them. Some models read a layer's weights without calling it, as convolutions
of recurrent layers are; a pass at the start finds those (`settle`), and their weights are made as the pass reaches the
module that reads them.
"""

import ctypes
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.profiler import record_function
from transformers import PreTrainedModel

from zotune.engine.torch.layers import TrainedLayers
from zotune.engine.torch.weights import ModelWeights
from zotune.errors import InputError
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
        self._model = model
        self._replaced: dict[nn.Module, Any] = {}  # modules with a forward of ours, and what they had before
        self._moves: dict[nn.Module, list[tuple[nn.Module, str]]] = {}  # parameters that each makes for its pass
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    self._give(module, module, name)

    def place(self, theta: Theta, probes: Sequence[Probe]) -> None:
        assert theta is self.weights, "this engine trains its model's own parameters"
        (self._probe,) = probes

    def trial(self) -> tuple[Theta, list[Probe]]:
        return self.weights, [AT_THETA, Probe(2, 1e-3)]

    def settle(self, run: Callable[[], object]) -> None:
        """Parameters that a pass reads as they are, not as the probe has them, go one module up, until there are none.

        Args:
            run: runs the model at a probe away from theta.
        """
        names = {module: name for name, module in self._model.named_modules()}
        while True:
            with _Reads() as reads:
                run()
            late = [
                (module, place)
                for module, places in self._moves.items()
                for place in places
                if id(place[0]._parameters[place[1]]) in reads.found
            ]
            if not late:
                return
            for module, place in late:
                if not names[module]:
                    raise InputError(f"--model: probes cannot reach how {type(module).__name__} reads its {place[1]}")
                self._moves[module].remove(place)
                self._give(self._model.get_submodule(names[module].rpartition(".")[0]), *place)

    def remove(self) -> None:
        for module, before in self._replaced.items():
            del vars(module)["forward"]
            if before is not None:
                vars(module)["forward"] = before
        self._replaced.clear()

    def _give(self, module: nn.Module, owner: nn.Module, name: str) -> None:
        """From now on `module` makes that parameter of `owner` for its passes."""
        self._moves.setdefault(module, []).append((owner, name))
        if module not in self._replaced:
            self._replaced[module] = vars(module).get("forward")
            vars(module)["forward"] = partial(self._forward, module, module.forward)

    def _forward(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._probe.distance:
            return forward(*args, **kwargs)
        own = len(self._moves[module]) == sum(parameter is not None for parameter in module._parameters.values())
        if own and type(module) is nn.Linear:
            return self._linear(module, *args, **kwargs)
        if own and type(module) is nn.Embedding and module.max_norm is None:
            return self._embedding(module, *args, **kwargs)
        before = [(owner, name, owner._parameters[name]) for owner, name in self._moves[module]]
        for owner, name, parameter in before:
            assert parameter is not None
            owner._parameters[name] = nn.Parameter(self._whole(parameter), requires_grad=False)
        try:
            return forward(*args, **kwargs)
        finally:
            for owner, name, parameter in before:
                owner._parameters[name] = parameter

    def _linear(self, module: nn.Linear, input: torch.Tensor) -> torch.Tensor:
        bias = None if module.bias is None else self._whole(module.bias)
        outputs = [
            F.linear(input, self._moved(name, module.weight), None if bias is None else bias[first:last])
            for name, first, last in self.weights.pieces[id(module.weight)]
        ]
        return torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0]

    def _embedding(self, module: nn.Embedding, input: torch.Tensor) -> torch.Tensor:
        weight = module.weight
        output = torch.empty((*input.shape, module.embedding_dim), dtype=weight.dtype, device=weight.device)
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


class _Reads(TorchFunctionMode):
    """Collects the parameters, by id, whose numbers operations are given as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.is_tensor(result) or isinstance(result, list | tuple) or getattr(func, "__name__", "") == "item":
            given = [*args, *(kwargs or {}).values()]
            given += [part for value in given if isinstance(value, list | tuple) for part in value]
            self.found.update(id(value) for value in given if isinstance(value, nn.Parameter))
        return result


def _return_freed_blocks() -> None:
    """Have glibc give a block of a megabyte back when it is freed: kept for reuse, pieces in fp32 and in a lower
    precision add up to a tenth of a small model."""
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(-3, 10**6)  # M_MMAP_THRESHOLD
