"""The residual stream of a half-precision model in float32, around products that stay in half precision.

What a probe changes is small beside what the stream holds: rounded to the stream's last bit at every layer, much of it
is lost. Kept in float32, from the embeddings to the head, only what goes into a product is rounded. It costs a few
element-wise operations. Whether a model's own code can be had so is found by a trial.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


class FloatStream:
    """The stream of one model, from now until `remove`: in float32 inside `in_use`, for models that are tried first.

    Args:
        possible: whether the model is of half precision; whoever tries it sets this to false where it cannot be had.
    """

    def __init__(self, model: PreTrainedModel, possible: bool) -> None:
        self.possible = possible
        self.active = False
        self._hooks = []
        if possible:
            self._hooks.append(model.get_input_embeddings().register_forward_hook(self._widen))
            for module in model.modules():
                if isinstance(module, nn.Linear | Conv1D | nn.LayerNorm):
                    self._hooks.append(module.register_forward_pre_hook(self._round))

    @contextmanager
    def in_use(self, wanted: bool) -> Iterator[None]:
        self.active = wanted
        try:
            yield
        finally:
            self.active = False

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _widen(self, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output.float() if self.active else output

    def _round(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if not self.active or module.weight is None:
            return None
        return (args[0].to(module.weight.dtype), *args[1:])  # type: ignore[arg-type]
