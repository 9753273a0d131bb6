"""What an optimizer is, and what all of them share: an update and a learning rate in, the next theta out.

Nothing else goes in, so a journal replays them. They are functions of float32 arrays, one tensor after the other, in a
fixed order: the same bits on every machine. So no BLAS and no library function whose last bit is the machine's; sums
run in an order of their own.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from zotune.zo.protocol import Theta
from zotune.zo.updates import Slope, Slopes, Update

Tensors = dict[str, np.ndarray]
CLIP_WINDOW = 100  # slopes that the running median looks back on
CLIP_AFTER = 10  # slopes before it is trusted


class Optimizer(Protocol):
    """`init` makes the state of a run, `update` the next theta and state; only InPlace writes its arguments."""

    def init(self, theta: Theta) -> Tensors: ...

    def update(
        self, theta: Theta, state: Mapping[str, np.ndarray], update: Update, learning_rate: float
    ) -> tuple[Theta, Tensors]: ...


def clipped(slopes: Sequence[Slope], sizes: np.ndarray, clip: float) -> tuple[list[Slope], np.ndarray]:
    """Slopes cut to +-clip * median of the |slopes| before them, `sizes`; and the sizes with these, uncut, added."""
    limit = clip * float(np.median(sizes)) if len(sizes) >= CLIP_AFTER else math.inf
    cut = [replace(slope, value=min(max(slope.value, -limit), limit)) for slope in slopes]
    return cut, np.append(sizes, [abs(slope.value) for slope in slopes])[-CLIP_WINDOW:]


def mixed(before: np.ndarray, now: np.ndarray, share: float) -> np.ndarray:
    """share * before + (1 - share) * now."""
    mixed: np.ndarray = np.float32(share) * before + np.float32(1.0 - share) * now
    return mixed


@dataclass(frozen=True)
class PerTensor(ABC):
    """What all share: `slots` arrays of a tensor's shape as its state, and the clipping of outlier slopes."""

    weight_decay: float = 0.0
    clip: float | None = None

    @property
    def slots(self) -> tuple[str, ...]:
        return ()

    def init(self, theta: Theta) -> Tensors:
        state = {f"{slot}/{name}": np.zeros_like(value) for slot in self.slots for name, value in theta.items()}
        return state | ({} if self.clip is None else {"clip": np.zeros(0)})

    def update(
        self, theta: Theta, state: Mapping[str, np.ndarray], update: Update, learning_rate: float
    ) -> tuple[Tensors, Tensors]:
        next_state = self._next_scalars(state)
        if self.clip is not None:
            assert isinstance(update, Slopes)  # a gradient has no slopes to cut
            slopes, next_state["clip"] = clipped(update.values, state["clip"], self.clip)
            update = Slopes(tuple(slopes))
        next_theta = {}
        for name, value in theta.items():
            kept = {slot: state[f"{slot}/{name}"] for slot in self.slots}
            next_theta[name] = self._next(name, value, kept, update, np.float32(learning_rate), next_state)
            next_state |= {f"{slot}/{name}": array for slot, array in kept.items()}
        return next_theta, next_state

    def _next_scalars(self, state: Mapping[str, np.ndarray]) -> Tensors:
        """State of the next step that belongs to no tensor."""
        return {}

    @abstractmethod
    def _next(
        self, name: str, value: np.ndarray, kept: Tensors, update: Update, rate: np.float32, scalars: Tensors
    ) -> np.ndarray:
        """The next value of one tensor; puts the next arrays of its slots into `kept`."""

    def _decayed(self, value: np.ndarray, rate: np.float32) -> np.ndarray:
        """Decoupled weight decay: value * (1 - rate * weight_decay)."""
        return value * (np.float32(1.0) - rate * np.float32(self.weight_decay)) if self.weight_decay else value
