"""z(seed): the noise of every direction, as a pure function of (noise, seed, tensor name, element).

A counter-based generator (Philox 4x64, Salmon et al., SC 2011) is keyed by SHA-256 of the seed and the tensor's
name, so two tensors never share noise, and the values depend on no global state, thread count, device or order of
calls. Everything here is NumPy in fp32 on the CPU: the same bits wherever a journal is replayed. `Noise` says which
z a run has: a distribution of KINDS, and masks over it. All kinds have mean 0 and covariance 1, so that their slopes
and learning rates mean the same.
"""

import hashlib
import math
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from zotune.zo.setting import setting

SEED_BITS = 53  # a seed survives every JSON parser, also those that hold numbers as doubles
MAX_BYTES_AHEAD = 2**28  # of one step's noise; larger noise is drawn tensor by tensor, when it is needed


def derive_seed(*parts: int | str) -> int:
    """A seed below 2**53 that is a pure function of `parts`, e.g. (run seed, "direction", step, index)."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> (64 - SEED_BITS)


def gaussian(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal noise of one tensor: float32 of `shape`."""
    return _generator(seed, name).standard_normal(shape, dtype=np.float32)


def uniform(seed: int, name: str, shape: tuple[int, ...], bound: float) -> np.ndarray:
    """Uniform numbers in [-bound, bound): float32 of `shape`, for the initial adapter."""
    unit = _generator(seed, name).random(shape, dtype=np.float32)
    return (unit * np.float32(2.0) - np.float32(1.0)) * np.float32(bound)


def permutation(seed: int, name: str, length: int) -> np.ndarray:
    """A shuffled arange(length), for the order of examples."""
    return _generator(seed, name).permutation(length)


@dataclass(frozen=True)
class Noise:
    """What the directions of a run are drawn from; part of the journal's first line.

    Masks: `sparsity` keeps z to the entries of small magnitude, the share 1 - sparsity of each tensor, as Sparse-MeZO
    (Liu et al., 2024, arXiv 2402.15751). The threshold is taken from theta at each step (theirs, once at the start:
    LoRA's B starts at zero). `blocks` keeps z to the layers whose number leaves the same rest divided by `blocks`, one
    block after the other, `steps` steps each.
    """

    kind: str = "gaussian"
    rank: int = setting(2, "Rank of the noise.", at_least=1)
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


def rademacher(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """-1 or 1, each with probability one half: float32 of `shape`."""
    bits = _generator(seed, name).integers(0, 2, size=shape, dtype=np.uint8)
    return bits.astype(np.float32) * np.float32(2.0) - np.float32(1.0)


def sphere(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform on the sphere of radius sqrt(size), tensor by tensor; theta's z has norm sqrt(d) then, too."""
    z = gaussian(seed, name, shape)
    # fsum is exact, where a sum in some order would depend on the machine.
    norm = math.sqrt(math.fsum(np.square(z, dtype=np.float64).ravel().tolist()))
    return z * np.float32(math.sqrt(z.size) / norm)


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


class NoiseAhead:
    """The noise of this step and the next, each drawn once, and the next one's while the model computes this one's.

    z is a pure function, so nothing but time depends on what is found here.
    """

    def __init__(self) -> None:
        self._steps: deque[dict[tuple[Noise, int], Future[Mapping[str, np.ndarray]]]] = deque(maxlen=2)
        self._thread = ThreadPoolExecutor(1, "zotune-noise")

    def start(self, noise: Noise, seeds: Sequence[int], theta: Mapping[str, np.ndarray]) -> None:
        """Begin to draw the directions of a step, in a thread; forget those of the step before the last."""
        shapes = {name: value.shape for name, value in theta.items()}
        fits = len(seeds) * sum(value.nbytes for value in theta.values()) <= MAX_BYTES_AHEAD
        self._steps.append(
            {(noise, seed): self._thread.submit(_draw_all, noise, seed, shapes) for seed in seeds if fits}
        )

    def drawn(self, noise: Noise, seed: int) -> Mapping[str, np.ndarray]:
        """The tensors of a direction, not to be written; empty where it was not asked for."""
        for step in self._steps:
            if future := step.get((noise, seed)):
                return future.result()
        return {}


def _draw_all(noise: Noise, seed: int, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, np.ndarray]:
    tensors = {name: noise.unmasked(seed, name, shape) for name, shape in shapes.items()}
    for z in tensors.values():
        z.flags.writeable = False
    return tensors


AHEAD = NoiseAhead()


def _generator(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
