"""What an estimator is: it looks at a batch and says what it learned of the gradient (`estimate`).

Most are probes: `ask` says where to probe, and `tell` turns the losses there into slopes, whose gradient is
mean_k slope_k * z(seed_k). Each estimator is a frozen value: one that remembers something gives its successor
(`after`), from theta and the slopes alone, so that a journal rebuilds it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from zotune.zo.noise import GAUSSIAN, Noise
from zotune.zo.objectives import Objective
from zotune.zo.protocol import Engine, Example, GradientOfScores, Need, Probe, Theta
from zotune.zo.updates import Gradient, Slope, Slopes, Update


@dataclass(frozen=True)
class Estimate:
    """What a step found: the mean loss over its probes and examples, and what it learned of the gradient."""

    loss: float
    update: Update
    measured: Mapping[str, float] = field(default_factory=dict)
    """What the objective measured beside the loss."""


class Estimator(ABC):
    """What makes an estimate of the gradient, step by step."""

    needs: ClassVar[tuple[Need, ...]] = ()
    """What it needs of an engine beside what the objective needs."""

    seeded: ClassVar[bool] = True
    """Whether its updates are slopes along directions drawn from seeds; else a run is kept in checkpoints."""

    @property
    def num_batches(self) -> int:
        """How many batches of examples the next step scores."""
        return 1

    @abstractmethod
    def num_probes(self, num_directions: int) -> int:
        """How many points of theta a step scores."""

    @abstractmethod
    def estimate(
        self,
        objective: Objective,
        engine: Engine,
        theta: Theta,
        batch: Sequence[Example],
        seeds: Sequence[int],
        noise: Noise = GAUSSIAN,
    ) -> Estimate:
        """One step's look at a batch; `seeds` are those of its directions."""

    def after(self, theta: Theta, slopes: Sequence[Slope]) -> Self:
        """The estimator of the next step, where this one, at `theta`, gave `slopes`."""
        return self


class ProbeEstimator(Estimator):
    """One that learns from losses alone, at points around theta. Pure: the same losses give the same slopes."""

    def num_probes(self, num_directions: int) -> int:
        return len(self.ask(range(num_directions)))

    def estimate(
        self,
        objective: Objective,
        engine: Engine,
        theta: Theta,
        batch: Sequence[Example],
        seeds: Sequence[int],
        noise: Noise = GAUSSIAN,
    ) -> Estimate:
        """Probe, ask the objective for the losses there, and take their slopes."""
        probes = self.ask(seeds, noise)
        losses = objective(engine, theta, probes, batch)  # [probe, example]
        slopes = self.tell(probes, losses.values if losses.derivatives is None else losses.derivatives)
        near = [probe.base is None for probe in probes]
        return Estimate(float(losses.values[near].mean()), Slopes(tuple(slopes)), losses.measured)

    @abstractmethod
    def ask(self, seeds: Sequence[int], noise: Noise = GAUSSIAN) -> list[Probe]:
        """The probes of one step; one seed per direction."""

    @abstractmethod
    def tell(self, probes: Sequence[Probe], losses: np.ndarray) -> list[Slope]:
        """Slopes from the losses [probe, example] at the probes that `ask` gave, or from their derivatives where the
        probes ask for those."""


class GradientEstimator(Estimator):
    """One that is given the gradient, whole, by the engine's way to differentiate: there are no seeds in it."""

    seeded = False

    @staticmethod
    @abstractmethod
    def way(engine: Engine) -> GradientOfScores:
        """How the engine differentiates."""

    def num_probes(self, num_directions: int) -> int:
        return 1

    def estimate(
        self,
        objective: Objective,
        engine: Engine,
        theta: Theta,
        batch: Sequence[Example],
        seeds: Sequence[int] = (),
        noise: Noise = GAUSSIAN,
    ) -> Estimate:
        """The loss and its gradient at theta."""
        loss, gradient = objective.gradient(self.way(engine), theta, batch)
        return Estimate(loss, Gradient(gradient))


def remembered(default: Any, *, repr: bool = True) -> Any:
    """A field that the steps so far have set, where the others are settings that a user gives."""
    return field(default=default, repr=repr)
