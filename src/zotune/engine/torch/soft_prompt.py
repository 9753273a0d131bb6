"""A soft prompt on a transformers model: trained vectors in place of the embeddings of virtual tokens.

Prompt tuning (Lester et al., 2021, arXiv 2104.08691). The virtual tokens are negative ids, with which every prompt
begins (`PromptSpec.virtual_tokens`); they take places and are attended to and shared like other tokens. Hooks on the
input embedding keep their ids from the model and write the vectors. Layers above see no difference (as they would in
prefix tuning).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.profiler import record_function
from transformers import PreTrainedModel

from zotune.adapter.spec import PROMPT_EMBEDDINGS, PromptSpec
from zotune.adapter.start import Start
from zotune.engine.torch.layers import TrainedLayers
from zotune.engine.torch.trained_head import TrainedHead
from zotune.zo.draws import gaussian
from zotune.zo.protocol import AT_THETA, Probe, Theta, points


class SoftPrompt(TrainedLayers):
    """The input embedding of one model; theta is {PROMPT_EMBEDDINGS: [virtual tokens, width]}, with the weights of a
    head where one is trained; probes are slots."""

    def __init__(self, model: PreTrainedModel, spec: PromptSpec) -> None:
        super().__init__()
        embedding = model.get_input_embeddings()
        assert isinstance(embedding.weight, torch.Tensor)
        shape = (spec.num_virtual_tokens, embedding.weight.shape[1])
        self.spec = spec
        self.head: TrainedHead = TrainedHead(
            model, spec.modules_to_save, lambda: len(self.vectors), lambda: self.active, beside_prompt=True
        )
        self.shapes = {PROMPT_EMBEDDINGS: shape, **self.head.shapes}
        self.device = model.device
        self.vectors = torch.zeros((1, *shape), device=self.device)  # [slots, virtual tokens, width]
        self._ids = torch.empty(0)  # of the pass that is under way
        self._hooks = [embedding.register_forward_pre_hook(self._take), embedding.register_forward_hook(self._write)]

    def place(self, theta: Theta, probes: Sequence[Probe]) -> None:
        with record_function("zotune::noise"):
            made = points(theta, probes)
            self.vectors = torch.from_numpy(np.stack([point[PROMPT_EMBEDDINGS] for point in made])).to(self.device)
            self.head.write(made)

    def place_leaves(self, theta: Theta) -> dict[str, torch.Tensor]:
        leaves = {name: torch.tensor(theta[name], device=self.device, requires_grad=True) for name in self.shapes}
        self.vectors = leaves[PROMPT_EMBEDDINGS][None]
        self.head.tensors = {name: leaves[name][None] for name in self.head.shapes}
        return leaves

    def start_from(self, start: Start) -> None:
        """What it has is not drawn, but taken from there."""
        self.spec = replace(self.spec, start=start)

    def trial(self) -> tuple[Theta, list[Probe]]:
        theta = {name: np.float32(0.1) * gaussian(1, name, shape) for name, shape in self.shapes.items()}
        return theta, [AT_THETA, Probe(2, 0.05)]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.head.remove()

    def _take(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        self._ids = args[0]
        return (args[0].clamp(min=0), *args[1:])

    def _write(self, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        if self.rows is not None:
            row, place = torch.where(self._ids < 0)
            vectors = self.vectors[self.rows.owners[row], -1 - self._ids[row, place]]
            output[row, place] = vectors.to(output.dtype)
            return output
        by_slot = self._ids.reshape(self.num_groups, len(self.vectors), -1)
        group, slot, place = torch.where(by_slot < 0)
        vectors = self.vectors[slot, -1 - by_slot[group, slot, place]].to(output.dtype)
        output.view(*by_slot.shape, -1)[group, slot, place] = vectors
        return output
