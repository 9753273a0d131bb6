"""Optimizers turn slopes into the next theta. Slopes and learning rate are their only input, so a journal replays them.

Pure functions of float32 arrays, one tensor after the other, in a fixed order: the same bits on every machine. So no
BLAS and no library function whose last bit is the machine's; sums run in an order of their own.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import numpy as np

from zotune.zo.estimators import Slope
from zotune.zo.protocol import Theta

Tensors = dict[str, np.ndarray]
CLIP_WINDOW = 100  # slopes that the running median looks back on
CLIP_AFTER = 10  # slopes before it is trusted


class Optimizer(Protocol):
    """`init` makes the state of a run, `update` the next theta and state; only InPlace writes its arguments."""

    def init(self, theta: Theta) -> Tensors: ...

    def update(
        self, theta: Theta, state: Mapping[str, np.ndarray], slopes: Sequence[Slope], learning_rate: float
    ) -> tuple[Theta, Tensors]: ...


def gradient(slopes: Sequence[Slope], name: str, value: np.ndarray) -> np.ndarray:
    """mean_k slope_k * z(seed_k) of one tensor, which is `value` in theta."""
    total = np.zeros(value.shape, dtype=np.float32)
    for slope in slopes:
        total += np.float32(slope.value / len(slopes)) * slope.noise.draw(slope.seed, name, value)
    return total


def clipped(slopes: Sequence[Slope], sizes: np.ndarray, clip: float) -> tuple[list[Slope], np.ndarray]:
    """Slopes cut to +-clip * median of the |slopes| before them, `sizes`; and the sizes with these, uncut, added."""
    limit = clip * float(np.median(sizes)) if len(sizes) >= CLIP_AFTER else math.inf
    cut = [replace(slope, value=min(max(slope.value, -limit), limit)) for slope in slopes]
    return cut, np.append(sizes, [abs(slope.value) for slope in slopes])[-CLIP_WINDOW:]


@dataclass(frozen=True)
class _PerTensor(ABC):
    """What all share: `slots` arrays of a tensor's shape as its state, and the clipping of outlier slopes."""

    weight_decay: float = 0.0
    clip: float | None = None

    @property
    def slots(self) -> tuple[str, ...]:
        return ()

    def init(self, theta: Theta) -> Tensors:
        state = {f"{slot}/{name}": np.zeros_like(value) for slot in self.slots for name, value in theta.items()}
        return state | ({} if self.clip is None else {"clip": np.zeros(0)})

    def update(
        self, theta: Theta, state: Mapping[str, np.ndarray], slopes: Sequence[Slope], learning_rate: float
    ) -> tuple[Tensors, Tensors]:
        next_state = self._next_scalars(state)
        if self.clip is not None:
            slopes, next_state["clip"] = clipped(slopes, state["clip"], self.clip)
        next_theta = {}
        for name, value in theta.items():
            kept = {slot: state[f"{slot}/{name}"] for slot in self.slots}
            next_theta[name] = self._next(name, value, kept, slopes, np.float32(learning_rate), next_state)
            next_state |= {f"{slot}/{name}": array for slot, array in kept.items()}
        return next_theta, next_state

    def _next_scalars(self, state: Mapping[str, np.ndarray]) -> Tensors:
        """State of the next step that belongs to no tensor."""
        return {}

    @abstractmethod
    def _next(
        self, name: str, value: np.ndarray, kept: Tensors, slopes: Sequence[Slope], rate: np.float32, scalars: Tensors
    ) -> np.ndarray:
        """The next value of one tensor; puts the next arrays of its slots into `kept`."""

    def _decayed(self, value: np.ndarray, rate: np.float32) -> np.ndarray:
        """Decoupled weight decay: value * (1 - rate * weight_decay)."""
        return value * (np.float32(1.0) - rate * np.float32(self.weight_decay)) if self.weight_decay else value


@dataclass(frozen=True)
class Sgd(_PerTensor):
    """theta <- theta - lr * m, m <- momentum * m + g + weight_decay * theta (torch.optim.SGD; MeZO at momentum 0)."""

    momentum: float = 0.0

    @property
    def slots(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    def _next(
        self, name: str, value: np.ndarray, kept: Tensors, slopes: Sequence[Slope], rate: np.float32, scalars: Tensors
    ) -> np.ndarray:
        step = gradient(slopes, name, value)
        if self.weight_decay:
            step += np.float32(self.weight_decay) * value
        if self.momentum:
            step += np.float32(self.momentum) * kept["momentum"]
            kept["momentum"] = step
        return value - rate * step


@dataclass(frozen=True)
class Sign(_PerTensor):
    """theta <- (1 - lr * weight_decay) theta - lr * sign(m), m <- momentum * m + (1 - momentum) * g.

    signSGD and, with momentum, Signum (Bernstein et al., 2018, arXiv 1802.04434). Weight decay is decoupled.
    """

    momentum: float = 0.9

    @property
    def slots(self) -> tuple[str, ...]:
        return ("momentum",)

    def _next(
        self, name: str, value: np.ndarray, kept: Tensors, slopes: Sequence[Slope], rate: np.float32, scalars: Tensors
    ) -> np.ndarray:
        kept["momentum"] = _mixed(kept["momentum"], gradient(slopes, name, value), self.momentum)
        return self._decayed(value, rate) - rate * np.sign(kept["momentum"])


@dataclass(frozen=True)
class Adam(_PerTensor):
    """torch.optim.Adam (Kingma and Ba, 2015): m / (sqrt(v) + epsilon), both free of their bias; weight decay in g."""

    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8

    decoupled: ClassVar[bool] = False

    @property
    def slots(self) -> tuple[str, ...]:
        return ("mean", "square")

    def init(self, theta: Theta) -> Tensors:
        return super().init(theta) | {"powers": np.ones(2)}

    def _next_scalars(self, state: Mapping[str, np.ndarray]) -> Tensors:
        # The powers of beta, by multiplication: a library's pow may differ in its last bit between machines.
        return {"powers": state["powers"] * np.array([self.adam_beta1, self.adam_beta2])}

    def _next(
        self, name: str, value: np.ndarray, kept: Tensors, slopes: Sequence[Slope], rate: np.float32, scalars: Tensors
    ) -> np.ndarray:
        step = gradient(slopes, name, value)
        if self.decoupled:
            value = self._decayed(value, rate)
        elif self.weight_decay:
            step += np.float32(self.weight_decay) * value
        kept["mean"] = _mixed(kept["mean"], step, self.adam_beta1)
        kept["square"] = _mixed(kept["square"], step * step, self.adam_beta2)
        mean_bias, square_bias = (1.0 - scalars["powers"]).tolist()
        denominator = np.sqrt(kept["square"]) / np.float32(math.sqrt(square_bias)) + np.float32(self.adam_epsilon)
        return value - np.float32(float(rate) / mean_bias) * (kept["mean"] / denominator)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019), as torch.optim.AdamW."""

    decoupled = True


@dataclass(frozen=True)
class Muon(_PerTensor):
    """Momentum, then every matrix made orthogonal (Jordan et al., 2024), as torch.optim.Muon but in fp32.

    m <- momentum * m + (1 - momentum) * g;
    theta <- (1 - lr * weight_decay) theta - lr * s * NS(momentum * m + (1 - momentum) * g),
    where NS sends all singular values near 1 by five Newton-Schulz steps and s = sqrt(max(1, rows / columns)). Vectors
    count as one row. ZO-Muon adds directions from a subspace: that is the noise low_rank. Its products are
    written out, which takes rank^2 * columns in time and is meant for matrices as thin as LoRA's.
    """

    momentum: float = 0.95

    @property
    def slots(self) -> tuple[str, ...]:
        return ("momentum",)

    def _next(
        self, name: str, value: np.ndarray, kept: Tensors, slopes: Sequence[Slope], rate: np.float32, scalars: Tensors
    ) -> np.ndarray:
        now = gradient(slopes, name, value)
        kept["momentum"] = _mixed(kept["momentum"], now, self.momentum)
        matrix = _mixed(kept["momentum"], now, self.momentum).reshape(-1, value.shape[-1])
        scale = np.float32(math.sqrt(max(1.0, matrix.shape[0] / matrix.shape[1])))
        return self._decayed(value, rate) - rate * scale * orthogonalized(matrix).reshape(value.shape)


def orthogonalized(matrix: np.ndarray) -> np.ndarray:
    """The matrix with its singular values sent near 1: five quintic Newton-Schulz steps with Muon's coefficients."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / np.float32(max(math.sqrt(math.fsum(np.square(wide, dtype=np.float64).ravel().tolist())), 1e-7))
    for _ in range(5):
        gram = np.stack([_sum(row * x) for row in x])
        polynomial = np.float32(-4.7750) * gram + np.float32(2.0315) * _product(gram, gram)
        x = np.float32(3.4445) * x + _product(polynomial, x)
    return x if wide is matrix else x.T


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left @ right, adding one outer product after the other."""
    total = np.zeros((left.shape[0], right.shape[1]), dtype=np.float32)
    for column, row in zip(left.T, right, strict=True):
        total += column[:, None] * row
    return total


def _sum(rows: np.ndarray) -> np.ndarray:
    """Sums along the last axis, halves onto each other until one number is left: an order that is ours alone."""
    while (length := rows.shape[-1]) > 1:
        half = length // 2
        odd = rows[..., 2 * half :]
        rows = rows[..., :half] + rows[..., half : 2 * half]
        if odd.shape[-1]:
            rows = np.concatenate([rows, odd], axis=-1)
    return rows[..., 0]


@dataclass(frozen=True)
class HizooSgd(_PerTensor):
    """theta <- theta - lr * g / D, for slopes with curvature (HiZOO: Zhao et al., 2024, arXiv 2402.15173).

    D <- (1 - s) D + s |mean_k curvature_k (z_k^2 - 1) / 2|, from D = 1, with s = `hizoo_smoothing`. Over Gaussian z
    the mean is the diagonal of the Hessian (Stein's identity); HiZOO leaves out the -1, which adds half the trace to
    every entry. The absolute value is theirs: it keeps D positive, and counts noise as curvature. Weight decay is
    decoupled.
    """

    hizoo_smoothing: float = 1e-3

    @property
    def slots(self) -> tuple[str, ...]:
        return ("diagonal",)

    def init(self, theta: Theta) -> Tensors:
        return super().init(theta) | {f"diagonal/{name}": np.ones_like(value) for name, value in theta.items()}

    def _next(
        self, name: str, value: np.ndarray, kept: Tensors, slopes: Sequence[Slope], rate: np.float32, scalars: Tensors
    ) -> np.ndarray:
        step, diagonal = (np.zeros(value.shape, dtype=np.float32) for _ in range(2))
        for slope in slopes:
            assert slope.curvature is not None
            z = slope.noise.draw(slope.seed, name, value)
            step += np.float32(slope.value / len(slopes)) * z
            diagonal += np.float32(slope.curvature / (2 * len(slopes))) * (z * z - np.float32(1.0))
        kept["diagonal"] = _mixed(kept["diagonal"], np.abs(diagonal), 1.0 - self.hizoo_smoothing)
        return self._decayed(value, rate) - rate * step / kept["diagonal"]


@dataclass(frozen=True)
class InPlace:
    """An optimizer without state that writes theta, tensor after tensor: for a theta of which there is one."""

    optimizer: Optimizer

    def init(self, theta: Theta) -> Tensors:
        return {}

    def update(
        self, theta: Theta, state: Mapping[str, np.ndarray], slopes: Sequence[Slope], learning_rate: float
    ) -> tuple[Theta, Tensors]:
        assert isinstance(theta, MutableMapping)
        for name in theta:
            updated, _ = self.optimizer.update({name: theta[name]}, {}, slopes, learning_rate)
            theta[name] = updated[name]
        return theta, {}


def _mixed(before: np.ndarray, now: np.ndarray, share: float) -> np.ndarray:
    """share * before + (1 - share) * now."""
    mixed: np.ndarray = np.float32(share) * before + np.float32(1.0 - share) * now
    return mixed


OPTIMIZERS = {"sgd": Sgd, "sign": Sign, "adam": Adam, "adamw": AdamW, "muon": Muon, "hizoo": HizooSgd}
