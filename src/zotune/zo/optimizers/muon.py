"""Muon, with matrix products whose bits are the same on every machine."""

import math
from dataclasses import dataclass

import numpy as np

from zotune.zo.optimizers.base import PerTensor, Tensors, mixed
from zotune.zo.setting import setting
from zotune.zo.updates import Update


@dataclass(frozen=True)
class Muon(PerTensor):
    """Momentum, then every matrix made orthogonal (Jordan et al., 2024), as torch.optim.Muon but in fp32.

    m <- momentum * m + (1 - momentum) * g;
    theta <- (1 - lr * weight_decay) theta - lr * s * NS(momentum * m + (1 - momentum) * g),
    where NS sends all singular values near 1 by five Newton-Schulz steps and s = sqrt(max(1, rows / columns)). Vectors
    count as one row. ZO-Muon adds directions from a subspace: that is the noise low_rank. Its products are
    written out, which takes rank^2 * columns in time and is meant for matrices as thin as LoRA's.
    """

    momentum: float = setting(0.95, "Share of the last step that is kept in the next.", at_least=0, below=1)

    @property
    def slots(self) -> tuple[str, ...]:
        return ("momentum",)

    def _next(
        self, name: str, value: np.ndarray, kept: Tensors, update: Update, rate: np.float32, scalars: Tensors
    ) -> np.ndarray:
        now = update.gradient(name, value)
        kept["momentum"] = mixed(kept["momentum"], now, self.momentum)
        matrix = mixed(kept["momentum"], now, self.momentum).reshape(-1, value.shape[-1])
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
