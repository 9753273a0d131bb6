"""The gradient that a forward pass already knows, carried down the layers at few tokens.

A pass gives the loss's gradient at the last residual state of its tokens exactly: the way there from the loss has the
final norm and the rows of the head that matter. From there it goes back block by block, each computed again for few
tokens alone (`engine.torch.lens_gradient`). In scope activated these are all that the adapter acts on, and the gradient
is exact; in scope everywhere they are the scored ones. A step is one forward pass and that way back, without a probe.

Where attention cannot be computed again, a mean Jacobian stands in for it, measured by forward passes: a tuned lens
(Belrose et al., 2023, arXiv 2303.08112) read backwards. Near work learns such feedback for networks that train from
scratch, or with anchor steps of backpropagation (GrAPE, and feedback-weight matching, both ICLR 2026).
"""

from dataclasses import dataclass

from zotune.zo.estimators.base import GradientEstimator
from zotune.zo.protocol import Engine, GradientOfScores


@dataclass(frozen=True)
class LensGradient(GradientEstimator):
    """The gradient of LoRA's A and B, or of B with A frozen; exact in scope activated."""

    needs = ("lens",)

    @staticmethod
    def way(engine: Engine) -> GradientOfScores:
        return engine.lens_gradient
