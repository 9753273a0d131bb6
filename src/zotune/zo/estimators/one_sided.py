"""Estimators that share one base point: K + 1 forwards for K directions, and an error of order eps.

`OneSided` divides the differences by eps, `Fzoo` by the spread of the losses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zotune.zo.estimators.base import ProbeEstimator
from zotune.zo.noise import GAUSSIAN, Noise
from zotune.zo.protocol import AT_THETA, Probe
from zotune.zo.updates import Slope


@dataclass(frozen=True)
class OneSided(ProbeEstimator):
    """Forward differences from one shared base point (Kiefer and Wolfowitz, 1952; Duchi et al., 2015).

    slope_k = (L(theta + eps z_k) - L(theta)) / eps, with an error of eps/2 times the curvature along z_k; K + 1
    forwards.
    """

    epsilon: float

    def ask(self, seeds: Sequence[int], noise: Noise = GAUSSIAN) -> list[Probe]:
        return [AT_THETA, *(Probe(seed, self.epsilon, noise) for seed in seeds)]

    def tell(self, probes: Sequence[Probe], losses: np.ndarray) -> list[Slope]:
        base, *means = losses.mean(axis=1).tolist()
        return [
            Slope(probe.seed, (mean - base) / probe.distance, probe.noise)
            for probe, mean in zip(probes[1:], means, strict=True)
        ]


@dataclass(frozen=True)
class Fzoo(ProbeEstimator):
    """FZOO (arXiv 2506.09034): one-sided differences over the standard deviation of the losses; Rademacher noise.

    slope_k = (L(theta + eps z_k) - L(theta)) / std_k L(theta + eps z_k): about z_k * gradient / |gradient|, so a step
    is normalised and eps and the scale of the loss cancel. The error is OneSided's. K + 1 forwards, K at least 2.
    """

    epsilon: float

    def ask(self, seeds: Sequence[int], noise: Noise = GAUSSIAN) -> list[Probe]:
        return OneSided(self.epsilon).ask(seeds, noise)

    def tell(self, probes: Sequence[Probe], losses: np.ndarray) -> list[Slope]:
        base, *means = losses.mean(axis=1).tolist()
        spread = float(np.std(means, ddof=1))
        return [
            Slope(probe.seed, (mean - base) / spread if spread else 0.0, probe.noise)
            for probe, mean in zip(probes[1:], means, strict=True)
        ]
