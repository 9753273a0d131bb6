"""How a step moves theta, as a value: whoever has theta and the optimizer's state makes the same bits of it.

Most engines need not know: they are given theta at every call. One whose theta is kept elsewhere, too, makes the move
there and here (`Mover`), so that slopes cross the wire in place of tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from zotune.zo.optimizers.base import Optimizer, Tensors
from zotune.zo.protocol import Theta
from zotune.zo.updates import Update


@dataclass(frozen=True, eq=False)
class Move:
    """What an optimizer is given beside theta and its state."""

    optimizer: Optimizer
    update: Update
    learning_rate: float

    def of(self, theta: Theta, state: Mapping[str, np.ndarray]) -> tuple[Theta, Tensors]:
        """The next theta and state."""
        return self.optimizer.update(theta, state, self.update, self.learning_rate)


class Mover(Protocol):
    """An engine that makes moves itself."""

    def move(self, theta: Theta, state: Mapping[str, np.ndarray], move: Move) -> tuple[Theta, Tensors]:
        """The next theta and state, as `Move.of` gives them."""
        ...


def moved(engine: Any, theta: Theta, state: Mapping[str, np.ndarray], move: Move) -> tuple[Theta, Tensors]:
    """The next theta and state, made by the engine where it makes moves."""
    if not hasattr(type(engine), "move"):
        return move.of(theta, state)
    mover: Mover = engine
    return mover.move(theta, state, move)
