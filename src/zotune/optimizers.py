"""Optimizers turn slopes into the next theta. Slopes and learning rate are their only input, so a journal replays them.

Pure functions of float32 arrays, one tensor after the other, in a fixed order: the same bits on every machine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from zotune.engine.protocol import Theta
from zotune.estimators import Slope
from zotune.noise import gaussian

Tensors = dict[str, np.ndarray]


class Optimizer(Protocol):
    """`init` makes the state of a run, `update` the next theta and state; neither writes its arguments."""

    def init(self, theta: Theta) -> Tensors: ...

    def update(
        self, theta: Theta, state: Mapping[str, np.ndarray], slopes: Sequence[Slope], learning_rate: float
    ) -> tuple[Tensors, Tensors]: ...


def gradient(slopes: Sequence[Slope], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """mean_k slope_k * z(seed_k) of one tensor."""
    total = np.zeros(shape, dtype=np.float32)
    for slope in slopes:
        total += np.float32(slope.value / len(slopes)) * gaussian(slope.seed, name, shape)
    return total


@dataclass(frozen=True)
class Sgd:
    """theta <- theta - lr * m, m <- momentum * m + g + weight_decay * theta (torch.optim.SGD; MeZO at momentum 0)."""

    momentum: float = 0.0
    weight_decay: float = 0.0

    def init(self, theta: Theta) -> Tensors:
        return {name: np.zeros_like(value) for name, value in theta.items()} if self.momentum else {}

    def update(
        self, theta: Theta, state: Mapping[str, np.ndarray], slopes: Sequence[Slope], learning_rate: float
    ) -> tuple[Tensors, Tensors]:
        next_theta, next_state = {}, {}
        for name, value in theta.items():
            step = gradient(slopes, name, value.shape)
            if self.weight_decay:
                step += np.float32(self.weight_decay) * value
            if self.momentum:
                step += np.float32(self.momentum) * state[name]
                next_state[name] = step
            next_theta[name] = value - np.float32(learning_rate) * step
        return next_theta, next_state


OPTIMIZERS = {"sgd": Sgd}
