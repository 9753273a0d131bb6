"""z(seed): the noise of every direction, as a pure function of (noise, seed, tensor name, element).

`Noise` says which z a run has: a distribution of KINDS, and masks over it. All kinds have mean 0 and covariance 1, so
that their slopes and learning rates mean the same. The random numbers themselves come from `draws`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from zotune.zo.draws import derive_seed, gaussian, rademacher, sphere
from zotune.zo.noise_ahead import AHEAD
from zotune.zo.setting import setting


@dataclass(frozen=True)
class Noise:
    """What the directions of a run are drawn from; part of the journal's first line.

    Masks: `sparsity` keeps z to the entries of small magnitude, the share 1 - sparsity of each tensor, as Sparse-MeZO
    (Liu et al., 2024, arXiv 2402.15751). The threshold is taken from theta at each step (theirs, once at the start:
    LoRA's B starts at zero). `blocks` keeps z to the layers whose number leaves the same rest divided by `blocks`, one
    block after the other, `steps` steps each.
    """

    kind: str = "gaussian"
    rank: int = setting(2, "Rank of the noise.", at_least=1, at_most=4096)
    steps: int = 50
    sparsity: float = 0.0
    blocks: int = 1
    run_seed: int = 0
    period: int = 0

    @property
    def is_periodic(self) -> bool:
        """Whether it changes every `steps` steps."""
        return self.kind == "low_rank" or self.blocks > 1

    def at(self, run_seed: int, step: int) -> Self:
        """The noise of one step, counted from 0."""
        return replace(self, run_seed=run_seed, period=step // self.steps) if self.is_periodic else self

    def draw(self, seed: int, name: str, value: np.ndarray) -> np.ndarray:
        """z(seed) of the tensor `name`, which is `value` in theta: float32 of its shape."""
        z = AHEAD.drawn(self, seed).get(name)
        if z is None or z.shape != value.shape:
            z = self.unmasked(seed, name, value.shape)
        return z * small_entries(value, self.sparsity) if self.sparsity else z

    def unmasked(self, seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """z(seed) of one tensor as far as it does not depend on theta: without the mask of `sparsity`."""
        if self.blocks > 1 and layer_of(name) % self.blocks != self.period % self.blocks:
            return np.zeros(shape, dtype=np.float32)
        return KINDS[self.kind](self, seed, name, shape)

    def direction(self, seed: int, theta: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """z(seed) of every tensor of theta."""
        return {name: self.draw(seed, name, value) for name, value in theta.items()}


def low_rank(noise: Noise, seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """U V^T / sqrt(rank) for matrices, U and V Gaussian; U is kept for `noise.steps` steps.

    LOZO (Chen et al., 2024, arXiv 2410.07698) divides by the rank once, in the estimate; here the root is in z, so that
    z has covariance 1. Within a period the gradient is seen through U U^T / rank alone. Vectors are Gaussian.
    """
    if len(shape) != 2:
        return gaussian(seed, name, shape)
    subspace = derive_seed(noise.run_seed, "subspace", noise.period)
    u = gaussian(subspace, name, (noise.rank, shape[0]))
    v = gaussian(seed, name, (noise.rank, shape[1]))
    z = np.zeros(shape, dtype=np.float32)
    for u_column, v_column in zip(u, v, strict=True):  # a BLAS product would round differently from machine to machine
        z += u_column[:, None] * v_column
    return z * np.float32(noise.rank**-0.5)


def small_entries(value: np.ndarray, sparsity: float) -> np.ndarray:
    """Where |value| is among the smallest share 1 - sparsity of its tensor: bool of its shape."""
    magnitude = np.abs(value)
    kept = max(1, round(value.size * (1 - sparsity)))
    mask: np.ndarray = magnitude <= np.partition(magnitude, kept - 1, axis=None)[kept - 1]
    return mask


def layer_of(name: str) -> int:
    """The number of the layer in a tensor's name, the first there is; 0 without one."""
    number = re.search(r"\.(\d+)\.", name)
    return int(number[1]) if number else 0


KINDS: dict[str, Callable[[Noise, int, str, tuple[int, ...]], np.ndarray]] = {
    "gaussian": lambda noise, seed, name, shape: gaussian(seed, name, shape),
    "rademacher": lambda noise, seed, name, shape: rademacher(seed, name, shape),
    "sphere": lambda noise, seed, name, shape: sphere(seed, name, shape),
    "low_rank": low_rank,
}

GAUSSIAN = Noise()
