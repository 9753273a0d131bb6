"""Random numbers as a pure function of (seed, tensor name, shape).

A counter-based generator (Philox 4x64, Salmon et al., SC 2011) is keyed by SHA-256 of the seed and the tensor's
name, so two tensors never share noise, and the values depend on no global state, thread count, device or order of
calls. Everything here is NumPy in fp32 on the CPU: the same bits wherever a journal is replayed.
"""

import hashlib
import math

import numpy as np

SEED_BITS = 53  # a seed survives every JSON parser, also those that hold numbers as doubles


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


def gumbel(seed: int, name: str, length: int) -> np.ndarray:
    """Standard Gumbel noise, float32 of `length`: added to log-probabilities, the largest sum is a sample of them."""
    # Exponential noise in float64: the least of many must not be 0, nor be one of a few values.
    return -np.log(_generator(seed, name).standard_exponential(length).astype(np.float32))


def _generator(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
