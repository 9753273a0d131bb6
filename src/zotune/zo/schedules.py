"""Learning rates over the steps of a run: the names and formulas of transformers' `get_scheduler`."""

import math
from collections.abc import Callable

Schedule = Callable[[int], float]
"""Step, counted from 0 -> learning rate of that step."""


def make_schedule(name: str, learning_rate: float, num_steps: int, warmup_steps: int = 0) -> Schedule:
    """The schedule `name` of SCHEDULES over `num_steps`; all but `constant` rise linearly over `warmup_steps`."""
    decay = SCHEDULES[name]

    def rate(step: int) -> float:
        if step < warmup_steps:
            return learning_rate * step / warmup_steps
        return learning_rate * decay((step - warmup_steps) / max(1, num_steps - warmup_steps))

    return rate


def _flat(progress: float) -> float:
    return 1.0


def _linear(progress: float) -> float:
    return max(0.0, 1.0 - progress)


def _cosine(progress: float) -> float:
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": _flat,
    "constant_with_warmup": _flat,
    "linear": _linear,
    "cosine": _cosine,
}
