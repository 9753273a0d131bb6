"""LoRA on a transformers model, applied from outside: out(x) + alpha/r * B(A x), on chosen tokens only.

Hu et al., 2021 (arXiv 2106.09685); acting from an invocation on: Greenewald et al., 2025 (aLoRA, arXiv 2504.12397).
The model's own code and weights stay untouched: forward hooks add the product, in fp32 as PEFT does. Tensor names
are those of PEFT's adapter files.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from zotune.adapter import LoraSpec, tensor_name
from zotune.engine.protocol import Theta
from zotune.errors import InputError


class LoraLayers:
    """The adapted modules of one model. `write` sets the adapter, `token_mask` says where it acts."""

    def __init__(self, model: PreTrainedModel, spec: LoraSpec) -> None:
        self.scaling = spec.alpha / spec.rank
        self.device = model.device
        self.token_mask: torch.Tensor | None = None  # [rows, last tokens], or None: acts on every token
        self.tensors: dict[str, torch.Tensor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._hooks = []
        self.fan_in_fan_out = False
        for name, module in adapted_modules(model, spec.target_modules):
            self.fan_in_fan_out |= isinstance(module, Conv1D)
            num_in, num_out = _features(module)
            key_a, key_b = tensor_name(name, "A"), tensor_name(name, "B")
            self.shapes[key_a], self.shapes[key_b] = (spec.rank, num_in), (num_out, spec.rank)
            self._hooks.append(module.register_forward_hook(self._hook(key_a, key_b)))

    def write(self, theta: Theta) -> None:
        """Make `theta` the adapter of the next forward passes."""
        self.tensors = {name: torch.from_numpy(value).to(self.device) for name, value in theta.items()}

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _hook(self, key_a: str, key_b: str):  # type: ignore[no-untyped-def]
        def add_product(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            matrix_a, matrix_b = self.tensors[key_a], self.tensors[key_b]
            if self.token_mask is None:
                output += (args[0].float() @ matrix_a.T) @ matrix_b.T * self.scaling
                return output
            # Some models, such as OPT, flatten rows and tokens before their feed-forward layers.
            num_rows, num_last = self.token_mask.shape
            inputs = args[0].view(num_rows, -1, args[0].shape[-1])
            by_row = output.view(num_rows, -1, output.shape[-1])
            # Only the last tokens of a pass are adapted; in a shorter pass (decoding, scored positions) all are.
            count = min(num_last, inputs.shape[1])
            first = inputs.shape[1] - count
            product = (inputs[:, first:].float() @ matrix_a.T) @ matrix_b.T * self.scaling
            by_row[:, first:] += torch.where(self.token_mask[:, num_last - count :, None], product, 0.0)
            return output

        return add_product


def adapted_modules(model: PreTrainedModel, targets: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """The linear modules that `targets` name, by PEFT's rule: the whole name or its last parts.

    Raises:
        InputError: a target matches no linear module; lists the names that exist.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    head = model.get_output_embeddings()
    if tuple(targets) == ("all-linear",):
        yield from ((name, module) for name, module in linear.items() if module is not head)
        return
    for target in targets:
        if not any(_matches(name, target) for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise InputError(
                f"--target-modules: {target!r} matches no linear module of {type(model).__name__}; "
                f"it has {', '.join(known)} (or all-linear)"
            )
    yield from ((n, m) for n, m in linear.items() if any(_matches(n, target) for target in targets))


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def _features(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, Conv1D):  # GPT-2's linear layer keeps its weight transposed
        return module.weight.shape[0], module.weight.shape[1]
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features
