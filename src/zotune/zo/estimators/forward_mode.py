"""The estimator without differences: it asks the engine for the derivative along each direction."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zotune.zo.estimators.base import ProbeEstimator
from zotune.zo.noise import GAUSSIAN, Noise
from zotune.zo.protocol import Probe
from zotune.zo.updates import Slope


@dataclass(frozen=True)
class Jvp(ProbeEstimator):
    """Exact directional derivatives by forward-mode differentiation (Baydin et al., 2022, arXiv 2202.08587).

    slope_k = d/dt L(theta + t z_k) at t = 0: no eps, no error but rounding, and the mean of slope * z over Gaussian
    directions is the gradient itself. Time and memory of 1 + K forwards.
    """

    needs = ("tangents",)

    def ask(self, seeds: Sequence[int], noise: Noise = GAUSSIAN) -> list[Probe]:
        return [Probe(seed, 0.0, noise, derivative=True) for seed in seeds]

    def tell(self, probes: Sequence[Probe], losses: np.ndarray) -> list[Slope]:
        return [
            Slope(probe.seed, value, probe.noise)
            for probe, value in zip(probes, losses.mean(axis=1).tolist(), strict=True)
        ]
