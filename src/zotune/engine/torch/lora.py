"""LoRA on a transformers model, applied from outside: out(x) + alpha/r * B(A x), for many adapters in one pass.

Hu et al., 2021 (arXiv 2106.09685). The model's own code and weights stay untouched: forward hooks add the product, in
fp32 as PEFT does. Adapters lie in slots, stacked into one tensor per matrix; every token of a pass belongs to one
slot, by the pass's layout, and all slots are one batched product. Tensor names are those of PEFT's adapter files.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.profiler import record_function
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from zotune.adapter.forms import FORMS, lora_matrices, lora_tangents, trained_shapes
from zotune.adapter.peft_rules import rank_and_scaling
from zotune.adapter.spec import LoraSpec, tensor_name
from zotune.adapter.start import Start
from zotune.engine.torch.blocks import features
from zotune.engine.torch.layers import SharedInput, TrainedLayers
from zotune.engine.torch.lens import Lens
from zotune.engine.torch.targets import resolve_targets
from zotune.engine.torch.trained_head import TrainedHead
from zotune.zo.draws import gaussian
from zotune.zo.protocol import AT_THETA, Probe, Theta, points


class LoraLayers(TrainedLayers):
    """The adapted modules of one model; `place` and `write` fill the slots."""

    def __init__(self, model: PreTrainedModel, spec: LoraSpec) -> None:
        super().__init__()
        self.device = model.device
        self.num_slots = 1
        self.tensors: dict[str, torch.Tensor] = {}  # A as [slots, inputs, rank], B as [slots, rank, outputs]
        self.matrices: dict[str, tuple[int, ...]] = {}  # shapes of A and B
        self._placed: tuple[Theta, list[Probe], bool] | None = None  # what the slots are of, where that is known
        self._hooks = []
        fan_in_fan_out = False
        spec, self.modules = resolve_targets(model, spec)
        for name, module in self.modules.items():
            fan_in_fan_out |= isinstance(module, Conv1D)
            num_in, num_out = features(module)
            rank, scaling = rank_and_scaling(name, spec)
            key_a, key_b = tensor_name(name, "A"), tensor_name(name, "B")
            self.matrices[key_a], self.matrices[key_b] = (rank, num_in), (num_out, rank)
            self._hooks.append(module.register_forward_hook(self._hook(key_a, key_b, scaling)))
        self.head: TrainedHead = TrainedHead(model, spec.modules_to_save, lambda: self.num_slots, lambda: self.active)
        self.shapes = {**trained_shapes(self.matrices, spec), **self.head.shapes}
        frozen = tuple(self.matrices.items()) if spec.peft_type != "lora" else ()
        self._frozen: dict[str, torch.Tensor] | None = None  # of the form, once it is asked for
        self.spec = replace(spec, fan_in_fan_out=fan_in_fan_out, matrices=frozen)
        self.lens = Lens.of(spec.start, self.device)

    def start_from(self, start: Start) -> None:
        """What it has of A is not drawn, but taken from there; the lens is its."""
        self.spec = replace(self.spec, start=start)
        self.lens = Lens.of(start, self.device)
        self._frozen = self._placed = None

    def place(self, theta: Theta, probes: Sequence[Probe]) -> None:
        """The same objects are the same values, and stay in place: as when a call comes in pieces."""
        inference = torch.is_inference_mode_enabled()  # whose tensors are not for differentiation
        if self._placed is not None:
            point, of, mode = self._placed
            if point is theta and mode == inference and [*map(id, of)] == [*map(id, probes)]:
                return
        with record_function("zotune::noise"):
            self.write(points(theta, probes))
        self._placed = theta, list(probes), inference

    def place_leaves(self, theta: Theta) -> dict[str, torch.Tensor]:
        """The forms of LoRA are made of operations that tensors have as arrays do: torch differentiates them too."""
        form: Any = FORMS[self.spec.peft_type]
        self._placed = None
        if self._frozen is None:
            frozen = form.frozen(self.spec)
            self._frozen = {name: torch.tensor(value, device=self.device) for name, value in frozen.items()}
        leaves = {name: torch.tensor(theta[name], device=self.device, requires_grad=True) for name in self.shapes}
        matrices: dict[str, torch.Tensor] = form.matrices(leaves, self._frozen, self.spec)
        self.num_slots = 1
        self.tensors = {name: matrices[name][None].transpose(1, 2) for name in self.matrices}
        self.head.tensors = {name: leaves[name][None] for name in self.head.shapes}
        return leaves

    def trial(self) -> tuple[Theta, list[Probe]]:
        theta = {name: np.float32(0.1) * gaussian(1, name, shape) for name, shape in self.shapes.items()}
        return theta, [AT_THETA, Probe(2, 0.05)]

    def write(self, points: Sequence[Theta]) -> None:
        """Make `points` the adapters of the next forward passes, a slot each."""
        self._placed = None
        self.num_slots = len(points)
        self.tensors = self._stacked([lora_matrices(point, self.spec) for point in points])
        self.head.write(points)

    def tangents(self, directions: Sequence[Theta]) -> dict[str, torch.Tensor]:
        """How `tensors` of one slot, and the head's, change along directions: [directions, 1, ...]."""
        moved = [lora_tangents(direction, self.spec) for direction in directions]
        stacked = self._stacked([{name: tangents[name] for name in self.matrices} for tangents in moved])
        for name in self.head.shapes:
            stacked[name] = torch.from_numpy(np.stack([direction[name] for direction in directions])).to(self.device)
        return {name: tensor.unsqueeze(1) for name, tensor in stacked.items()}

    def _stacked(self, adapters: Sequence[Theta]) -> dict[str, torch.Tensor]:
        return {
            name: torch.from_numpy(np.stack([adapter[name] for adapter in adapters])).to(self.device).transpose(1, 2)
            for name in adapters[0]
        }

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.head.remove()

    def _hook(self, key_a: str, key_b: str, scaling: float):  # type: ignore[no-untyped-def]
        def add_product(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            if self.active:
                with record_function("zotune::lora"):
                    product = self._product(args[0], self.tensors[key_a], self.tensors[key_b], scaling)
                    whole = output + product.reshape(output.shape)
                    return whole if self.float_stream else whole.to(output.dtype)
            return output

        return add_product

    def _product(
        self, inputs: torch.Tensor, matrix_a: torch.Tensor, matrix_b: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        if self.num_tokens and self.num_slots > 1 and inputs.numel() // inputs.shape[-1] not in self.num_tokens:
            raise SharedInput("an adapted module is called with more than the tokens of rows")
        if self.rows is None:
            by_slot = inputs.reshape(self.num_groups, self.num_slots, -1, inputs.shape[-1]).transpose(0, 1)
        else:
            by_slot = self.rows.apart(inputs.reshape(len(self.rows), -1, inputs.shape[-1]))
        _, groups, count, width = by_slot.shape  # [slots, groups, tokens, features]
        low = torch.bmm(by_slot.reshape(self.num_slots, groups * count, width).float(), matrix_a) * scaling
        product = torch.bmm(low, matrix_b).view(self.num_slots, groups, count, -1)
        product = product.transpose(0, 1) if self.rows is None else self.rows.together(product)
        if self.token_mask is None:
            return product
        # Some models, such as OPT, flatten rows and tokens before their feed-forward layers.
        by_row = product.reshape(self.token_mask.shape[0], -1, product.shape[-1])
        # A pass over fewer tokens than the rows have (decoding, the scored positions) is over the last ones.
        mask = self.token_mask[:, -by_row.shape[1] :, None]
        return torch.where(mask, by_row, 0.0)


def module_widths(model: PreTrainedModel, spec: LoraSpec) -> list[int]:
    """How many numbers go into each module that is adapted, or come out: the larger of the two.

    Raises:
        InputError: the settings choose no module, or one that cannot be adapted.
    """
    return [max(features(module)) for module in resolve_targets(model, spec)[1].values()]
