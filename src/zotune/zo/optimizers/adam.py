"""Adam and AdamW, as in PyTorch: the mean gradient over the root of its mean square."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from zotune.zo.optimizers.base import PerTensor, Tensors, mixed
from zotune.zo.protocol import Theta
from zotune.zo.setting import setting
from zotune.zo.updates import Update


@dataclass(frozen=True)
class Adam(PerTensor):
    """torch.optim.Adam (Kingma and Ba, 2015): m / (sqrt(v) + eps), both free of their bias; weight decay in g."""

    beta1: float = setting(0.9, "Decay of the mean of the gradient.", at_least=0, below=1)
    beta2: float = setting(0.999, "Decay of the mean of its square.", at_least=0, below=1)
    eps: float = setting(1e-8, "Added to the root of the mean square.", above=0, at_most=1)

    decoupled: ClassVar[bool] = False

    @property
    def slots(self) -> tuple[str, ...]:
        return ("mean", "square")

    def init(self, theta: Theta) -> Tensors:
        return super().init(theta) | {"powers": np.ones(2)}

    def _next_scalars(self, state: Mapping[str, np.ndarray]) -> Tensors:
        # The powers of beta, by multiplication: a library's pow may differ in its last bit between machines.
        return {"powers": state["powers"] * np.array([self.beta1, self.beta2])}

    def _next(
        self, name: str, value: np.ndarray, kept: Tensors, update: Update, rate: np.float32, scalars: Tensors
    ) -> np.ndarray:
        step = update.gradient(name, value)
        if self.decoupled:
            value = self._decayed(value, rate)
        elif self.weight_decay:
            step = step + np.float32(self.weight_decay) * value
        kept["mean"] = mixed(kept["mean"], step, self.beta1)
        kept["square"] = mixed(kept["square"], step * step, self.beta2)
        mean_bias, square_bias = (1.0 - scalars["powers"]).tolist()
        denominator = np.sqrt(kept["square"]) / np.float32(math.sqrt(square_bias)) + np.float32(self.eps)
        return value - np.float32(float(rate) / mean_bias) * (kept["mean"] / denominator)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019), as torch.optim.AdamW."""

    decoupled = True
