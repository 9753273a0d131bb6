"""Estimators say where to probe (`ask`) and turn the losses there into slopes (`tell`).

The gradient they stand for is mean_k slope_k * z(seed_k), over the slopes of a step. Each is a frozen value: those that
remember something give their successor (`after`), from theta and the slopes alone, so that a journal rebuilds them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from zotune.zo.noise import GAUSSIAN, Noise
from zotune.zo.protocol import AT_THETA, Probe, Theta


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


class Estimator(ABC):
    """Pure: the same seeds and losses give the same probes and slopes."""

    @property
    def num_batches(self) -> int:
        """How many batches of examples the next step scores."""
        return 1

    @abstractmethod
    def ask(self, seeds: Sequence[int], noise: Noise = GAUSSIAN) -> list[Probe]:
        """The probes of one step; one seed per direction."""

    @abstractmethod
    def tell(self, probes: Sequence[Probe], losses: np.ndarray) -> list[Slope]:
        """Slopes from the losses [probe, example] at the probes that `ask` gave, or from their derivatives where the
        probes ask for those."""

    def after(self, theta: Theta, slopes: Sequence[Slope]) -> Self:
        """The estimator of the next step, where this one, at `theta`, gave `slopes`."""
        return self


# ---- two-sided


@dataclass(frozen=True)
class Spsa(Estimator):
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
class Hizoo(Estimator):
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
class AdaptiveSpsa(Estimator):
    """SPSA whose eps follows the measured curvature and rounding noise of the loss.

    Every `epsilon_steps` steps, the first included, a ladder of seven points between -3/8 eps and 3/8 eps on the first
    direction gives the rounding noise, from fourth differences (ECnoise: Moré and Wild, 2011), and three points on
    each direction the curvature. Then eps = 2 sqrt(rounding / curvature): there a one-sided difference is at its best
    (Gill et al., 1983), and a two-sided one has an error of rounding / eps and hardly any of truncation. A
    curvature below its own rounding error, 4 rounding / eps^2, asks for a larger eps instead. One measurement changes
    eps by a factor of 2 at most. 2 K forwards, and 7 more where measured.
    """

    epsilon: float
    epsilon_steps: int = 50
    age: int = 0  # steps so far

    LADDER = tuple(rung / 8 for rung in range(-3, 4))
    FACTOR = 2.0

    def ask(self, seeds: Sequence[int], noise: Noise = GAUSSIAN) -> list[Probe]:
        ladder = [Probe(seeds[0], share * self.epsilon, noise) for share in self.LADDER]
        return (ladder if self.age % self.epsilon_steps == 0 else []) + Spsa(self.epsilon).ask(seeds, noise)

    def tell(self, probes: Sequence[Probe], losses: np.ndarray) -> list[Slope]:
        if self.age % self.epsilon_steps:
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


# ---- one-sided


@dataclass(frozen=True)
class OneSided(Estimator):
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
class Fzoo(Estimator):
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


# ---- of shaped losses


@dataclass(frozen=True)
class EvolutionStrategy(Estimator):
    """Antithetic evolution strategy with shaped losses (Salimans et al., 2017, arXiv 1703.03864).

    slope_k = (u(theta + eps z_k) - u(theta - eps z_k)) / 2, where u is the loss's z-score among the 2 K of the step
    (ES at Scale, 2025, arXiv 2509.24372) or its rank, centred, from -1/2 to 1/2. eps and the scale of the loss cancel:
    along z-scores the mean is the gradient up to a positive factor and an error of order eps^2, along ranks only an
    ascent direction, which outliers do not move. 2 K forwards.
    """

    epsilon: float
    es_shaping: str = "z-score"

    def ask(self, seeds: Sequence[int], noise: Noise = GAUSSIAN) -> list[Probe]:
        return Spsa(self.epsilon).ask(seeds, noise)

    def tell(self, probes: Sequence[Probe], losses: np.ndarray) -> list[Slope]:
        shaped = SHAPINGS[self.es_shaping](losses.mean(axis=1))
        return [
            Slope(probe.seed, float(above - below) / 2, probe.noise)
            for probe, above, below in zip(probes[::2], shaped[::2], shaped[1::2], strict=True)
        ]


def z_scores(values: np.ndarray) -> np.ndarray:
    """(values - mean) / standard deviation; zeros where all are equal."""
    centred: np.ndarray = values - values.mean()
    return centred / (centred.std() or 1.0)


def centred_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from -1/2 to 1/2; equal values share their mean rank."""
    below = (values[:, None] > values).sum(axis=1)
    not_above = (values[:, None] >= values).sum(axis=1)
    return (below + not_above - 1) / 2 / (len(values) - 1) - 0.5


SHAPINGS = {"z-score": z_scores, "rank": centred_ranks}


# ---- with a control variate


@dataclass(frozen=True)
class Svrg(Estimator):
    """SVRG's control variate (ZO-SVRG: Liu et al., 2018; MeZO-SVRG: Gautam et al., 2024, arXiv 2404.08080).

    Every `svrg_steps` steps theta becomes the anchor, and SPSA over `svrg_batches` batches gives the anchor's slopes
    (and that step's). In between, slope_k = SPSA(theta) - SPSA(anchor) along the same z_k on the same batch, and the
    anchor's gradient is added: its slopes stand in every step's list. The expectation is SPSA's; what is saved is the
    variance between batches, while theta is near the anchor. The anchor's directions are those of its step, and the
    large batch need not be all data: between two anchors the error that they leave is fixed. 4 K forwards (2 K of large
    batches at an anchor), and a second theta in memory.
    """

    epsilon: float
    svrg_steps: int = 10
    svrg_batches: int = 8
    anchor: Theta | None = field(default=None, repr=False)
    anchor_slopes: tuple[Slope, ...] = ()
    age: int = 0  # steps since the anchor was set

    @property
    def num_batches(self) -> int:
        return self.svrg_batches if self.anchor is None else 1

    def ask(self, seeds: Sequence[int], noise: Noise = GAUSSIAN) -> list[Probe]:
        here = Spsa(self.epsilon).ask(seeds, noise)
        return here if self.anchor is None else here + [replace(probe, base=self.anchor) for probe in here]

    def tell(self, probes: Sequence[Probe], losses: np.ndarray) -> list[Slope]:
        spsa = Spsa(self.epsilon)
        if self.anchor is None:
            return spsa.tell(probes, losses)
        half = len(probes) // 2
        here, there = spsa.tell(probes[:half], losses[:half]), spsa.tell(probes[half:], losses[half:])
        total = len(here) + len(self.anchor_slopes)
        # The mean over both lists must be the sum of the means of each.
        return [
            replace(slope, value=(slope.value - control.value) * total / len(here))
            for slope, control in zip(here, there, strict=True)
        ] + [replace(slope, value=slope.value * total / len(self.anchor_slopes)) for slope in self.anchor_slopes]

    def after(self, theta: Theta, slopes: Sequence[Slope]) -> Self:
        if self.age + 1 == self.svrg_steps:
            return replace(self, anchor=None, anchor_slopes=(), age=0)
        if self.anchor is None:
            return replace(self, anchor=theta, anchor_slopes=tuple(slopes), age=1)
        return replace(self, age=self.age + 1)


# ---- without differences


@dataclass(frozen=True)
class Jvp(Estimator):
    """Exact directional derivatives by forward-mode differentiation (Baydin et al., 2022, arXiv 2202.08587).

    slope_k = d/dt L(theta + t z_k) at t = 0: no eps, no error but rounding, and the mean of slope * z over Gaussian
    directions is the gradient itself. Time and memory of 1 + K forwards.
    """

    def ask(self, seeds: Sequence[int], noise: Noise = GAUSSIAN) -> list[Probe]:
        return [Probe(seed, 0.0, noise, derivative=True) for seed in seeds]

    def tell(self, probes: Sequence[Probe], losses: np.ndarray) -> list[Slope]:
        return [
            Slope(probe.seed, value, probe.noise)
            for probe, value in zip(probes, losses.mean(axis=1).tolist(), strict=True)
        ]


ESTIMATORS: dict[str, type[Estimator]] = {
    "spsa": Spsa,
    "one_sided": OneSided,
    "fzoo": Fzoo,
    "es": EvolutionStrategy,
    "svrg": Svrg,
    "hizoo": Hizoo,
    "adaptive": AdaptiveSpsa,
    "jvp": Jvp,
}
