"""The gradient itself, by backpropagation: what to take where the engine has autograd and the loss is differentiable.

It is the reference that the others are measured against. In scope `activated` prompts do not change with theta, so the
gradient flows through the suffix alone. There are no seeds in it: a run is kept in checkpoints.
"""

from dataclasses import dataclass

from zotune.zo.estimators.base import GradientEstimator
from zotune.zo.protocol import Engine, GradientOfScores


@dataclass(frozen=True)
class Backprop(GradientEstimator):
    """The exact gradient of the mean loss (Rumelhart et al., 1986). One forward and one backward pass."""

    needs = ("gradients",)

    @staticmethod
    def way(engine: Engine) -> GradientOfScores:
        return engine.gradient
