"""A head that is trained with the adapter: whole modules, which compute with each probe's own weights.

PEFT calls them `modules_to_save`. Their weights are part of theta, under the names in PEFT's files; hooks compute what
each probe's rows get, so that the model's own weights stay untouched.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from zotune.adapter.spec import module_tensor_name
from zotune.engine.torch.model_kind import head_modules
from zotune.errors import InputError
from zotune.zo.draws import gaussian
from zotune.zo.protocol import Theta


class TrainedHead:
    """Modules of one model by their names, from now until `remove`.

    Args:
        num_slots: how many probes a pass has, whose rows lie one probe after the other.
        active: whether the probes' weights are computed with.
        beside_prompt: whether a soft prompt is trained with them, and not LoRA.

    Raises:
        InputError: a module of another kind than a linear layer or a norm has weights there.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        names: Sequence[str],
        num_slots: Callable[[], int],
        active: Callable[[], bool],
        beside_prompt: bool = False,
    ) -> None:
        self.device = model.device
        self.tensors: dict[str, torch.Tensor] = {}  # [slots, ...]
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._num_slots, self._active = num_slots, active
        self._parameters: dict[str, tuple[nn.Module, str]] = {}
        self._deviation = _deviation(model)
        self.modules: dict[nn.Module, None] = {}
        self._beside_prompt = beside_prompt
        self._hooks = []
        names = [name for name in dict.fromkeys(names) if _has(model, name)]  # PEFT names heads of other models, too
        for name, module in ((f"{top}.{name}".rstrip("."), m) for top in names for name, m in _inside(model, top)):
            if not isinstance(module, nn.Linear | nn.LayerNorm):
                raise InputError(
                    f"--head classification: {name} of {type(model).__name__} is a {type(module).__name__}; only heads "
                    "of linear layers and norms can be trained"
                )
            for key, parameter in module.named_parameters(recurse=False):
                tensor = module_tensor_name(name, key, beside_prompt)
                self.shapes[tensor] = tuple(parameter.shape)
                self._parameters[tensor] = module, key
            self.modules[module] = None
            self._hooks.append(module.register_forward_hook(self._hook(name)))

    def write(self, points: Sequence[Theta]) -> None:
        """Make `points` the weights of the next passes, a slot each."""
        self.tensors = {
            name: torch.from_numpy(np.stack([point[name] for point in points])).to(self.device) for name in self.shapes
        }

    def start(self, seed: int) -> dict[str, np.ndarray]:
        """Where the head starts: as the model has it; what is zero there is new, and drawn as models start."""
        return {
            name: _start_of(module, key, self._deviation, seed, name)
            for name, (module, key) in self._parameters.items()
        }

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _hook(self, name: str) -> Callable[..., torch.Tensor | None]:
        weight_name, bias_name = (module_tensor_name(name, key, self._beside_prompt) for key in ("weight", "bias"))

        def compute(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            if not self._active():
                return None
            weight, bias = self.tensors[weight_name], self.tensors.get(bias_name)
            slots = self._num_slots()
            rows = args[0].reshape(slots, -1, args[0].shape[-1]).float()
            if isinstance(module, nn.Linear):
                found = torch.bmm(rows, weight.transpose(1, 2))
            else:
                assert isinstance(module, nn.LayerNorm)
                found = F.layer_norm(rows, module.normalized_shape, eps=module.eps) * weight[:, None]
            if bias is not None:
                found = found + bias[:, None]
            return found.reshape(output.shape).to(output.dtype)

        return compute


def _has(model: PreTrainedModel, name: str) -> bool:
    return any(name == known for known, _ in model.named_modules())


def start_head(model: PreTrainedModel, seed: int) -> None:
    """Give what is zero in a classifier's own head the weights that `TrainedHead.start` has for it, for a run that
    moves the model's own parameters."""
    for top in head_modules(model):
        for inner, module in _inside(model, top):
            for key, parameter in module.named_parameters(recurse=False):
                name = module_tensor_name(f"{top}.{inner}".rstrip("."), key)
                value = _start_of(module, key, _deviation(model), seed, name)
                parameter.data.copy_(torch.from_numpy(value))


def _deviation(model: PreTrainedModel) -> float:
    """Of the weights that such a model starts with."""
    return float(getattr(model.config, "initializer_range", 0.02))


def _start_of(module: nn.Module, key: str, deviation: float, seed: int, name: str) -> np.ndarray:
    """A parameter as the model has it, or drawn where that is zero."""
    value: np.ndarray = getattr(module, key).detach().float().cpu().numpy()
    if not value.any() and value.ndim > 1:
        return np.float32(deviation) * gaussian(seed, f"initial/{name}", value.shape)
    if not value.any() and isinstance(module, nn.LayerNorm) and key == "weight":
        return np.ones_like(value)
    return value


def _inside(model: PreTrainedModel, top: str) -> list[tuple[str, nn.Module]]:
    """The modules with weights of their own in the module of that name."""
    found = model.get_submodule(top).named_modules()
    return [(name, module) for name, module in found if any(True for _ in module.parameters(recurse=False))]
