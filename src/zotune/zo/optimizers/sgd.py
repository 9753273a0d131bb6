"""Gradient descent with momentum, and its sign: the direction of every entry without its size."""

from dataclasses import dataclass

import numpy as np

from zotune.zo.optimizers.base import PerTensor, Tensors, mixed
from zotune.zo.setting import setting
from zotune.zo.updates import Update


@dataclass(frozen=True)
class Sgd(PerTensor):
    """theta <- theta - lr * m, m <- momentum * m + g + weight_decay * theta (torch.optim.SGD; MeZO at momentum 0)."""

    momentum: float = setting(0.0, "Share of the last step that is kept in the next.", at_least=0, below=1)

    @property
    def slots(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    def _next(
        self, name: str, value: np.ndarray, kept: Tensors, update: Update, rate: np.float32, scalars: Tensors
    ) -> np.ndarray:
        step = update.gradient(name, value)
        if self.weight_decay:
            step = step + np.float32(self.weight_decay) * value
        if self.momentum:
            step = step + np.float32(self.momentum) * kept["momentum"]
            kept["momentum"] = step
        return value - rate * step


@dataclass(frozen=True)
class Sign(PerTensor):
    """theta <- (1 - lr * weight_decay) theta - lr * sign(m), m <- momentum * m + (1 - momentum) * g.

    signSGD and, with momentum, Signum (Bernstein et al., 2018, arXiv 1802.04434). Weight decay is decoupled.
    """

    momentum: float = setting(0.9, "Share of the last step that is kept in the next.", at_least=0, below=1)

    @property
    def slots(self) -> tuple[str, ...]:
        return ("momentum",)

    def _next(
        self, name: str, value: np.ndarray, kept: Tensors, update: Update, rate: np.float32, scalars: Tensors
    ) -> np.ndarray:
        kept["momentum"] = mixed(kept["momentum"], update.gradient(name, value), self.momentum)
        return self._decayed(value, rate) - rate * np.sign(kept["momentum"])
