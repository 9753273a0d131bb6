"""Estimators that probe on both sides of theta: SPSA, HiZOO's with curvature, and SPSA that chooses its own epsilon.

A two-sided difference has an error of order eps^2. The evolution strategy and SVRG probe where SPSA does, and stand in
files of their own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from zotune.zo.estimators.base import ProbeEstimator, remembered
from zotune.zo.noise import GAUSSIAN, Noise
from zotune.zo.protocol import AT_THETA, Probe, Theta
from zotune.zo.setting import setting
from zotune.zo.updates import Slope


@dataclass(frozen=True)
class Spsa(ProbeEstimator):
    """Two-sided SPSA (Spall, 1992), as in MeZO (Malladi et al., 2023, Algorithm 1; n-SPSA with several seeds).

    slope_k = (L(theta + eps z_k) - L(theta - eps z_k)) / (2 eps), with an error of order eps^2; over Gaussian
    directions the mean of slope * z is the gradient of the loss smoothed by eps. 2 K forwards.
    """

    epsilon: float

    def ask(self, seeds: Sequence[int], noise: Noise = GAUSSIAN) -> list[Probe]:
        return [Probe(seed, distance, noise) for seed in seeds for distance in (self.epsilon, -self.epsilon)]

    def tell(self, probes: Sequence[Probe], losses: np.ndarray) -> list[Slope]:
        means = losses.mean(axis=1)
        return [
            Slope(plus.seed, float((above - below) / (plus.distance - minus.distance)), plus.noise)
            for plus, minus, above, below in zip(probes[::2], probes[1::2], means[::2], means[1::2], strict=True)
        ]


@dataclass(frozen=True)
class Hizoo(ProbeEstimator):
    """HiZOO's slopes with curvature (Zhao et al., 2024, arXiv 2402.15173), for the optimizer of that name.

    curvature_k = (L(theta + eps z_k) + L(theta - eps z_k) - 2 L(theta)) / eps^2, with an error of order eps^2; the
    slopes are SPSA's. HiZOO probes along Sigma^(1/2) z; here z stays as it is and the optimizer multiplies by Sigma:
    the expected step, Sigma * gradient, is the same, its variance is not. 2 K + 1 forwards.
    """

    epsilon: float

    def ask(self, seeds: Sequence[int], noise: Noise = GAUSSIAN) -> list[Probe]:
        return [AT_THETA, *Spsa(self.epsilon).ask(seeds, noise)]

    def tell(self, probes: Sequence[Probe], losses: np.ndarray) -> list[Slope]:
        slopes = Spsa(self.epsilon).tell(probes[1:], losses[1:])
        centre, *means = losses.mean(axis=1).tolist()
        return [
            replace(slope, curvature=(above + below - 2 * centre) / probe.distance**2)
            for slope, probe, above, below in zip(slopes, probes[1::2], means[::2], means[1::2], strict=True)
        ]


@dataclass(frozen=True)
class AdaptiveSpsa(ProbeEstimator):
    """SPSA whose eps follows the measured curvature and rounding noise of the loss.

    Every `steps` steps, the first included, a ladder of seven points between -3/8 eps and 3/8 eps on the first
    direction gives the rounding noise, from fourth differences (ECnoise: Moré and Wild, 2011), and three points on
    each direction the curvature. Then eps = 2 sqrt(rounding / curvature): there a one-sided difference is at its best
    (Gill et al., 1983), and a two-sided one has an error of rounding / eps and hardly any of truncation. A
    curvature below its own rounding error, 4 rounding / eps^2, asks for a larger eps instead. One measurement changes
    eps by a factor of 2 at most. 2 K forwards, and 7 more where measured.
    """

    epsilon: float
    steps: int = setting(
        50, "Steps from one measurement of eps to the next; --epsilon is where it starts.", at_least=1, at_most=10**9
    )
    age: int = remembered(0)  # steps so far

    LADDER = tuple(rung / 8 for rung in range(-3, 4))
    FACTOR = 2.0

    def ask(self, seeds: Sequence[int], noise: Noise = GAUSSIAN) -> list[Probe]:
        ladder = [Probe(seeds[0], share * self.epsilon, noise) for share in self.LADDER]
        return (ladder if self.age % self.steps == 0 else []) + Spsa(self.epsilon).ask(seeds, noise)

    def tell(self, probes: Sequence[Probe], losses: np.ndarray) -> list[Slope]:
        if self.age % self.steps:
            return Spsa(self.epsilon).tell(probes, losses)
        rungs = len(self.LADDER)
        differences = np.diff(losses[:rungs].mean(axis=1), n=4)
        rounding = math.sqrt(float(np.mean(differences**2)) / math.comb(8, 4))  # the weights' squares add up to 70
        middle = rungs // 2
        points = Hizoo(self.epsilon)
        slopes = points.tell(
            [probes[middle], *probes[rungs:]], np.concatenate([losses[middle : middle + 1], losses[rungs:]])
        )
        return [replace(slope, rounding=rounding) for slope in slopes]

    def after(self, theta: Theta, slopes: Sequence[Slope]) -> Self:
        measured = [slope.curvature for slope in slopes if slope.curvature is not None]
        rounding = slopes[0].rounding
        if not measured or not rounding:  # nothing to go by; a loss without any rounding noise is a constant
            return replace(self, age=self.age + 1)
        curvature = float(np.median(np.abs(measured)))
        wanted = math.inf
        if curvature > 4 * rounding / self.epsilon**2:
            wanted = 2 * math.sqrt(rounding / curvature)
        bounded = min(max(wanted, self.epsilon / self.FACTOR), self.epsilon * self.FACTOR)
        return replace(self, epsilon=bounded, age=self.age + 1)
