"""The update of all parameters: an optimizer that overwrites theta, for want of memory for a second one."""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

import numpy as np

from zotune.zo.optimizers.base import Optimizer, Tensors
from zotune.zo.protocol import Theta
from zotune.zo.updates import Update


@dataclass(frozen=True)
class InPlace:
    """An optimizer without state that writes theta, tensor after tensor: for a theta of which there is one."""

    optimizer: Optimizer

    def init(self, theta: Theta) -> Tensors:
        return {}

    def update(
        self, theta: Theta, state: Mapping[str, np.ndarray], update: Update, learning_rate: float
    ) -> tuple[Theta, Tensors]:
        assert isinstance(theta, MutableMapping)
        for name in theta:
            updated, _ = self.optimizer.update({name: theta[name]}, {}, update, learning_rate)
            theta[name] = updated[name]
        return theta, {}
