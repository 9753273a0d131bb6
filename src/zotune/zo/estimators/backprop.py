"""The gradient itself, by backpropagation: what to take where the engine has autograd and the loss is differentiable.

It is the reference that the others are measured against. In scope `activated` prompts do not change with theta, so the
gradient flows through the suffix alone. There are no seeds in it: a run is kept in checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from zotune.zo.estimators.base import Estimate, Estimator
from zotune.zo.noise import GAUSSIAN, Noise
from zotune.zo.objectives import Objective
from zotune.zo.protocol import Engine, Example, Theta
from zotune.zo.updates import Gradient


@dataclass(frozen=True)
class Backprop(Estimator):
    """The exact gradient of the mean loss (Rumelhart et al., 1986). One forward and one backward pass."""

    needs = ("gradients",)
    seeded = False

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
        loss, gradient = objective.gradient(engine.gradient, theta, batch)
        return Estimate(loss, Gradient(gradient))
