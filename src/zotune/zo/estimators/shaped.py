"""The evolution strategy: slopes from the losses of a step after shaping, that is, from their z-scores or ranks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from zotune.zo.estimators.base import Estimate, ProbeEstimator
from zotune.zo.estimators.two_sided import Spsa
from zotune.zo.noise import GAUSSIAN, Noise
from zotune.zo.objectives import Objective, means
from zotune.zo.protocol import Engine, Example, Probe, Theta
from zotune.zo.setting import setting
from zotune.zo.updates import Slope, Slopes


def z_scores(values: np.ndarray) -> np.ndarray:
    """(values - mean) / standard deviation, over the first axis; zeros where all are equal."""
    centred: np.ndarray = values - values.mean(axis=0)
    spread = centred.std(axis=0)
    return centred / np.where(spread == 0.0, 1.0, spread)


def centred_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from -1/2 to 1/2; equal values share their mean rank."""
    below = (values[:, None] > values).sum(axis=1)
    not_above = (values[:, None] >= values).sum(axis=1)
    return (below + not_above - 1) / 2 / (len(values) - 1) - 0.5


SHAPINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "z-score": lambda losses: z_scores(losses.mean(axis=1)),
    "rank": lambda losses: centred_ranks(losses.mean(axis=1)),
    "prompt": lambda losses: z_scores(losses).mean(axis=1),
}
"""From losses [probe, example] to what counts of each probe: its sum over the probes is 0."""


@dataclass(frozen=True)
class EvolutionStrategy(ProbeEstimator):
    """Evolution strategy with shaped losses, antithetic unless asked otherwise (Salimans et al., 2017, arXiv
    1703.03864).

    slope_k = (u(theta + eps z_k) - u(theta - eps z_k)) / 2, where u is the loss's z-score among the 2 K of the step
    (ES at Scale, 2025, arXiv 2509.24372), its rank, centred, from -1/2 to 1/2, or the mean of its z-scores prompt by
    prompt, so that no prompt counts more than another (as GRPO's advantages, arXiv 2402.03300). eps and the scale of
    the loss cancel: along z-scores the mean is the gradient up to a positive factor and an error of order eps^2, along
    ranks only an ascent direction, which outliers do not move. 2 K forwards. On one side, slope_k = u(theta + eps z_k)
    among K: K forwards.

    With several batches a step, each has its share of the directions, which are shaped among themselves.
    """

    epsilon: float
    batches_per_step: int = 1
    shaping: str = setting("z-score", "What is made of a step's losses.", choices=tuple(SHAPINGS))
    sides: str = setting("both", "Whether a direction is looked at on both sides of theta.", choices=("both", "one"))

    @property
    def num_batches(self) -> int:
        return self.batches_per_step

    def estimate(
        self,
        objective: Objective,
        engine: Engine,
        theta: Theta,
        batch: Sequence[Example],
        seeds: Sequence[int],
        noise: Noise = GAUSSIAN,
    ) -> Estimate:
        """Each batch under its share of the probes."""
        count = self.batches_per_step
        size = len(batch) // count
        found = []
        for part, share in enumerate(np.array_split(np.arange(len(seeds)), count)):
            own = [seeds[place] for place in share]
            found.append(super().estimate(objective, engine, theta, batch[part * size :][:size], own, noise))
        slopes = tuple(slope for each in found if isinstance(each.update, Slopes) for slope in each.update.values)
        measured = means([each.measured for each in found], [1.0] * count)
        return Estimate(float(np.mean([each.loss for each in found])), Slopes(slopes), measured)

    def ask(self, seeds: Sequence[int], noise: Noise = GAUSSIAN) -> list[Probe]:
        if self.sides == "both":
            return Spsa(self.epsilon).ask(seeds, noise)
        return [Probe(seed, self.epsilon, noise) for seed in seeds]

    def tell(self, probes: Sequence[Probe], losses: np.ndarray) -> list[Slope]:
        shaped = SHAPINGS[self.shaping](losses)
        if self.sides == "one":
            return [Slope(probe.seed, float(value), probe.noise) for probe, value in zip(probes, shaped, strict=True)]
        return [
            Slope(probe.seed, float(above - below) / 2, probe.noise)
            for probe, above, below in zip(probes[::2], shaped[::2], shaped[1::2], strict=True)
        ]
