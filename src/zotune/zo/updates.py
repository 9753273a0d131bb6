"""What a step learned of the gradient, as a tagged value: slopes along directions that are drawn from seeds, or the
gradient itself.

Slopes are a few numbers, and whoever draws the same directions makes the same update of them: a journal of slopes is
replayed without a model. A gradient is as large as theta; a run that learns by gradients is kept in checkpoints.
"""

import math
from dataclasses import dataclass

import numpy as np

from zotune.zo.noise import GAUSSIAN, Noise
from zotune.zo.protocol import Theta


@dataclass(frozen=True)
class Slope:
    """What a step learned along z(seed): `value` is the estimated derivative of the loss; MeZO's `projected_grad`.

    Where the estimator measures them: `curvature`, the second derivative, and `rounding`, the standard deviation of
    the loss's rounding noise.
    """

    seed: int
    value: float
    noise: Noise = GAUSSIAN
    curvature: float | None = None
    rounding: float | None = None


@dataclass(frozen=True)
class Slopes:
    """The gradient mean_k slope_k * z(seed_k)."""

    values: tuple[Slope, ...]

    @property
    def is_finite(self) -> bool:
        return all(math.isfinite(slope.value) for slope in self.values)

    @property
    def is_zero(self) -> bool:
        return not any(slope.value for slope in self.values)

    def gradient(self, name: str, value: np.ndarray) -> np.ndarray:
        """That of one tensor, which is `value` in theta: float32 of its shape."""
        total = np.zeros(value.shape, dtype=np.float32)
        for slope in self.values:
            total += np.float32(slope.value / len(self.values)) * slope.noise.draw(slope.seed, name, value)
        return total


@dataclass(frozen=True, eq=False)
class Gradient:
    """The gradient as it is, tensor by tensor."""

    tensors: Theta

    @property
    def is_finite(self) -> bool:
        return all(bool(np.isfinite(value).all()) for value in self.tensors.values())

    @property
    def is_zero(self) -> bool:
        return not any(bool(value.any()) for value in self.tensors.values())

    def gradient(self, name: str, value: np.ndarray) -> np.ndarray:
        """That of one tensor, which is `value` in theta: float32 of its shape."""
        return self.tensors[name].astype(np.float32, copy=False)


Update = Slopes | Gradient
