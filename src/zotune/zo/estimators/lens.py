"""The gradient that a forward pass already knows, carried down the layers by a lens.

A pass gives the loss's gradient at the last residual state of the scored tokens exactly: the way there from the loss
has the final norm and the rows of the head that matter. From there it goes back block by block, at those tokens alone:
exactly where a block treats each token by itself, and through attention by a matrix, measured once by forward passes
of the base model (`engine.torch.lens`). A step is one forward pass and that short way back, without a probe. Near work
learns such feedback for networks that train from scratch, or with anchor steps of backpropagation (GrAPE, and
feedback-weight matching, both ICLR 2026); the lens itself is a tuned lens (Belrose et al., 2023, arXiv 2303.08112) read
backwards.
"""

from dataclasses import dataclass

from zotune.zo.estimators.base import GradientEstimator
from zotune.zo.protocol import Engine, GradientOfScores


@dataclass(frozen=True)
class LensGradient(GradientEstimator):
    """An estimate of the gradient of B, with A frozen; exact at the top of the model."""

    needs = ("lens",)

    @staticmethod
    def way(engine: Engine) -> GradientOfScores:
        return engine.lens_gradient
