"""HiZOO's descent: steps over an estimate of the Hessian's diagonal, for slopes that have a curvature."""

from dataclasses import dataclass

import numpy as np

from zotune.zo.optimizers.base import PerTensor, Tensors, mixed
from zotune.zo.protocol import Theta
from zotune.zo.setting import setting
from zotune.zo.updates import Slopes, Update


@dataclass(frozen=True)
class HizooSgd(PerTensor):
    """theta <- theta - lr * g / D, for slopes with curvature (HiZOO: Zhao et al., 2024, arXiv 2402.15173).

    D <- (1 - s) D + s |mean_k curvature_k (z_k^2 - 1) / 2|, from D = 1, with s = `smoothing`. Over Gaussian z
    the mean is the diagonal of the Hessian (Stein's identity); HiZOO leaves out the -1, which adds half the trace to
    every entry. The absolute value is theirs: it keeps D positive, and counts noise as curvature. Weight decay is
    decoupled.
    """

    smoothing: float = setting(1e-3, "Share of a step's curvature in the diagonal.", above=0, below=1)

    @property
    def slots(self) -> tuple[str, ...]:
        return ("diagonal",)

    def init(self, theta: Theta) -> Tensors:
        return super().init(theta) | {f"diagonal/{name}": np.ones_like(value) for name, value in theta.items()}

    def _next(
        self, name: str, value: np.ndarray, kept: Tensors, update: Update, rate: np.float32, scalars: Tensors
    ) -> np.ndarray:
        assert isinstance(update, Slopes)
        slopes = update.values
        step, diagonal = (np.zeros(value.shape, dtype=np.float32) for _ in range(2))
        for slope in slopes:
            assert slope.curvature is not None
            z = slope.noise.draw(slope.seed, name, value)
            step += np.float32(slope.value / len(slopes)) * z
            diagonal += np.float32(slope.curvature / (2 * len(slopes))) * (z * z - np.float32(1.0))
        kept["diagonal"] = mixed(kept["diagonal"], np.abs(diagonal), 1.0 - self.smoothing)
        return self._decayed(value, rate) - rate * step / kept["diagonal"]
