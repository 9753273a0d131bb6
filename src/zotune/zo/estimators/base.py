"""What an estimator is: it says where to probe (`ask`) and turns the losses there into slopes (`tell`).

The gradient that the slopes of a step stand for is mean_k slope_k * z(seed_k). Each estimator is a frozen value: one
that remembers something gives its successor (`after`), from theta and the slopes alone, so that a journal rebuilds it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import field
from typing import Any, Self

import numpy as np

from zotune.zo.noise import GAUSSIAN, Noise
from zotune.zo.protocol import Probe, Theta
from zotune.zo.updates import Slope


class Estimator(ABC):
    """Pure: the same seeds and losses give the same probes and slopes."""

    @property
    def num_batches(self) -> int:
        """How many batches of examples the next step scores."""
        return 1

    @abstractmethod
    def ask(self, seeds: Sequence[int], noise: Noise = GAUSSIAN) -> list[Probe]:
        """The probes of one step; one seed per direction."""

    @abstractmethod
    def tell(self, probes: Sequence[Probe], losses: np.ndarray) -> list[Slope]:
        """Slopes from the losses [probe, example] at the probes that `ask` gave, or from their derivatives where the
        probes ask for those."""

    def after(self, theta: Theta, slopes: Sequence[Slope]) -> Self:
        """The estimator of the next step, where this one, at `theta`, gave `slopes`."""
        return self


def remembered(default: Any, *, repr: bool = True) -> Any:
    """A field that the steps so far have set, where the others are settings that a user gives."""
    return field(default=default, repr=repr, metadata={"state": True})
