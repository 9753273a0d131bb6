"""A step as a journal has it: its loss, its learning rate and its update.

An update is slopes, from which theta is rebuilt, or a digest of theta after a step whose update no journal can hold: a
gradient is as large as theta, so checkpoints hold such a run (`run/checkpoint.py`).
"""

from dataclasses import dataclass
from typing import Any

from zotune.zo.noise import Noise
from zotune.zo.updates import Slope, Slopes


@dataclass(frozen=True)
class Checkpointed:
    """The update of a step that only checkpoints hold; `theta_digest` is that of theta after it."""

    theta_digest: str


@dataclass(frozen=True)
class Entry:
    """One step: `step` counts from 1, `loss` is the mean over the step's probes and examples."""

    step: int
    loss: float
    learning_rate: float
    update: Slopes | Checkpointed

    @property
    def slopes(self) -> tuple[Slope, ...]:
        """The slopes of the step; none where its update is a gradient."""
        return self.update.values if isinstance(self.update, Slopes) else ()

    def to_json(self) -> dict[str, Any]:
        """What a line holds."""
        shared = {"step": self.step, "loss": self.loss, "learning_rate": self.learning_rate}
        if isinstance(self.update, Checkpointed):
            return {**shared, "theta": self.update.theta_digest}
        return {**shared, "slopes": [_numbers(slope) for slope in self.update.values]}

    @classmethod
    def from_json(cls, value: dict[str, Any], noise: Noise) -> "Entry":
        """The entry that a line holds; `noise` is that of its step.

        Raises:
            ValueError, TypeError, KeyError: it holds no entry.
        """
        shared = dict(value)
        update: Slopes | Checkpointed
        if "theta" in shared:
            update = Checkpointed(str(shared.pop("theta")))
        else:
            update = Slopes(tuple(_slope(noise, *numbers) for numbers in shared.pop("slopes")))
        return cls(**shared, update=update)


def _numbers(slope: Slope) -> list[float | None]:
    """Seed, value, and what was measured beside them; the noise is the header's."""
    values = [slope.seed, slope.value, slope.curvature, slope.rounding]
    while values[-1] is None:
        values.pop()
    return values


def _slope(noise: Noise, seed: int, value: float, *measured: float | None) -> Slope:
    return Slope(int(seed), float(value), noise, *(None if number is None else float(number) for number in measured))
