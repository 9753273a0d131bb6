"""SPSA with a control variate: slopes at theta minus those at an anchor, on the same batch and directions.

The anchor is an earlier theta, whose gradient was measured on many batches. It is remembered from step to step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from zotune.zo.estimators.base import ProbeEstimator, remembered
from zotune.zo.estimators.two_sided import Spsa
from zotune.zo.noise import GAUSSIAN, Noise
from zotune.zo.protocol import Probe, Theta
from zotune.zo.setting import setting
from zotune.zo.updates import Slope


@dataclass(frozen=True)
class Svrg(ProbeEstimator):
    """SVRG's control variate (ZO-SVRG: Liu et al., 2018; MeZO-SVRG: Gautam et al., 2024, arXiv 2404.08080).

    Every `steps` steps theta becomes the anchor, and SPSA over `batches` batches gives the anchor's slopes
    (and that step's). In between, slope_k = SPSA(theta) - SPSA(anchor) along the same z_k on the same batch, and the
    anchor's gradient is added: its slopes stand in every step's list. The expectation is SPSA's; what is saved is the
    variance between batches, while theta is near the anchor. The anchor's directions are those of its step, and the
    large batch need not be all data: between two anchors the error that they leave is fixed. 4 K forwards (2 K of large
    batches at an anchor), and a second theta in memory.
    """

    epsilon: float
    steps: int = setting(10, "Steps from one anchor to the next.", at_least=1, at_most=10**9)
    batches: int = setting(8, "Batches over which an anchor's slopes are measured.", at_least=1, at_most=1000)
    anchor: Theta | None = remembered(None, repr=False)  # noqa: RUF009 (it makes a field)
    anchor_slopes: tuple[Slope, ...] = remembered(())
    age: int = remembered(0)  # steps since the anchor was set

    @property
    def num_batches(self) -> int:
        return self.batches if self.anchor is None else 1

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
        if self.age + 1 == self.steps:
            return replace(self, anchor=None, anchor_slopes=(), age=0)
        if self.anchor is None:
            return replace(self, anchor=theta, anchor_slopes=tuple(slopes), age=1)
        return replace(self, age=self.age + 1)
