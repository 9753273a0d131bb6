"""The evolution strategy: slopes from the losses of a step after shaping, that is, from their z-scores or ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zotune.zo.estimators.base import ProbeEstimator
from zotune.zo.estimators.two_sided import Spsa
from zotune.zo.noise import GAUSSIAN, Noise
from zotune.zo.protocol import Probe
from zotune.zo.setting import setting
from zotune.zo.updates import Slope


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


@dataclass(frozen=True)
class EvolutionStrategy(ProbeEstimator):
    """Antithetic evolution strategy with shaped losses (Salimans et al., 2017, arXiv 1703.03864).

    slope_k = (u(theta + eps z_k) - u(theta - eps z_k)) / 2, where u is the loss's z-score among the 2 K of the step
    (ES at Scale, 2025, arXiv 2509.24372) or its rank, centred, from -1/2 to 1/2. eps and the scale of the loss cancel:
    along z-scores the mean is the gradient up to a positive factor and an error of order eps^2, along ranks only an
    ascent direction, which outliers do not move. 2 K forwards.
    """

    epsilon: float
    shaping: str = setting("z-score", "What is made of a step's losses.", choices=tuple(SHAPINGS))

    def ask(self, seeds: Sequence[int], noise: Noise = GAUSSIAN) -> list[Probe]:
        return Spsa(self.epsilon).ask(seeds, noise)

    def tell(self, probes: Sequence[Probe], losses: np.ndarray) -> list[Slope]:
        shaped = SHAPINGS[self.shaping](losses.mean(axis=1))
        return [
            Slope(probe.seed, float(above - below) / 2, probe.noise)
            for probe, above, below in zip(probes[::2], shaped[::2], shaped[1::2], strict=True)
        ]
