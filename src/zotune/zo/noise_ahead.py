"""Noise drawn ahead of its use, in a thread: what a step needs is there when the model has scored the step before it.

Nothing but time depends on it: whatever is not found here is drawn where it is needed, with the same values.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np

MAX_BYTES_AHEAD = 2**28  # of one step's noise; larger noise is drawn tensor by tensor, when it is needed


class Unmasked(Protocol):
    """Noise as far as it does not depend on theta. Equal noises give equal values."""

    def __hash__(self) -> int: ...

    def unmasked(self, seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray: ...


class NoiseAhead:
    """The noise of this step and the next, each drawn once, and the next one's while the model computes this one's.

    z is a pure function, so nothing but time depends on what is found here.
    """

    def __init__(self) -> None:
        self._steps: deque[dict[tuple[Unmasked, int], Future[Mapping[str, np.ndarray]]]] = deque(maxlen=2)
        self._thread = ThreadPoolExecutor(1, "zotune-noise")

    def start(self, noise: Unmasked, seeds: Sequence[int], theta: Mapping[str, np.ndarray]) -> None:
        """Begin to draw the directions of a step, in a thread; forget those of the step before the last."""
        shapes = {name: value.shape for name, value in theta.items()}
        fits = len(seeds) * sum(value.nbytes for value in theta.values()) <= MAX_BYTES_AHEAD
        self._steps.append(
            {(noise, seed): self._thread.submit(_draw_all, noise, seed, shapes) for seed in seeds if fits}
        )

    def drawn(self, noise: Unmasked, seed: int) -> Mapping[str, np.ndarray]:
        """The tensors of a direction, not to be written; empty where it was not asked for."""
        for step in self._steps:
            if future := step.get((noise, seed)):
                return future.result()
        return {}


def _draw_all(noise: Unmasked, seed: int, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, np.ndarray]:
    tensors = {name: noise.unmasked(seed, name, shape) for name, shape in shapes.items()}
    for z in tensors.values():
        z.flags.writeable = False
    return tensors


AHEAD = NoiseAhead()
