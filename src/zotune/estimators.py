"""Estimators say where to probe (`ask`) and turn the losses there into slopes (`tell`).

The gradient they stand for is mean_k slope_k * z(seed_k).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from zotune.engine.protocol import Probe


@dataclass(frozen=True)
class Slope:
    """The estimated derivative of the loss along z(seed); MeZO's `projected_grad`."""

    seed: int
    value: float


class Estimator(Protocol):
    """Pure: the same seeds and losses give the same probes and slopes."""

    def ask(self, seeds: Sequence[int]) -> list[Probe]:
        """The probes of one step; one seed per direction."""
        ...

    def tell(self, probes: Sequence[Probe], losses: np.ndarray) -> list[Slope]:
        """Slopes from the losses [probe, example] at the probes that `ask` gave."""
        ...


@dataclass(frozen=True)
class Spsa:
    """Two-sided SPSA (Spall, 1992), as in MeZO (Malladi et al., 2023, Algorithm 1; n-SPSA with several seeds).

    slope_k = (L(theta + eps z_k) - L(theta - eps z_k)) / (2 eps), with an error of order eps^2; over Gaussian
    directions the mean of slope * z is the gradient of the loss smoothed by eps.
    """

    epsilon: float

    def ask(self, seeds: Sequence[int]) -> list[Probe]:
        return [Probe(seed, distance) for seed in seeds for distance in (self.epsilon, -self.epsilon)]

    def tell(self, probes: Sequence[Probe], losses: np.ndarray) -> list[Slope]:
        means = losses.mean(axis=1)
        return [
            Slope(plus.seed, float((above - below) / (plus.distance - minus.distance)))
            for plus, minus, above, below in zip(probes[::2], probes[1::2], means[::2], means[1::2], strict=True)
        ]


ESTIMATORS = {"spsa": Spsa}
