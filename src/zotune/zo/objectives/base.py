"""What an objective is: it asks an engine about a batch and gives one loss per probe and example, which training makes
smaller. It says what it needs of an engine (`needs`), so that a trainer knows no kinds of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from zotune.zo.protocol import Engine, Example, GradientOfScores, Need, Probe, Theta


@dataclass(frozen=True)
class Sample:
    """A text that the model wrote, and its reward: the sum, and by name; None where there is none."""

    prompt: Any
    completion: str
    reward: float | None
    rewards: Mapping[str, float | None]


@dataclass(frozen=True)
class Losses:
    """What an objective found: float64 [probe, example].

    `derivatives` are those along the probes' directions, where the probes asked for them; `values` are at theta then.
    `answers` [probe][example] is what the model answered: the index of a candidate, or a text. `measured` are means
    that are worth to be looked at, by name, and `samples` what the first probe wrote.
    """

    values: np.ndarray
    derivatives: np.ndarray | None = None
    answers: Sequence[Sequence[Any]] | None = None
    measured: Mapping[str, float] = field(default_factory=dict)
    samples: Sequence[Sample] = ()


class Objective(ABC):
    """What is minimised."""

    needs: ClassVar[tuple[Need, ...]] = ("scores",)
    has_gradient: ClassVar[bool] = False
    takes_labels: ClassVar[bool | None] = None
    """Whether it is for examples with label words, for those without, or for both (None)."""
    needs_same_labels: ClassVar[bool] = False
    """Whether it compares examples by their labels, which must then mean the same in all of them."""

    def prepared(self, tokenizer: Any) -> "Objective":
        """This objective for a run whose model has that tokenizer; one that reads texts keeps it."""
        return self

    def for_evaluation(self) -> "Objective":
        """This objective as theta is judged by it, where training has it in another form."""
        return self

    def by_example(self) -> "Objective":
        """This objective with losses that are the examples' own, to see how far they differ."""
        return self

    def mean_loss(self, found: Sequence[Losses], examples: Sequence[Example]) -> float:
        """The loss over `examples`, which the first probe of `found` has scored batch by batch."""
        return float(np.concatenate([each.values[0] for each in found]).mean())

    def close(self) -> None:  # noqa: B027  # nothing to give back is the rule
        """Give back what it holds."""

    @abstractmethod
    def __call__(self, engine: Engine, theta: Theta, probes: Sequence[Probe], batch: Sequence[Example]) -> Losses:
        """Losses, and derivatives where the probes ask for them."""

    def gradient(
        self, gradient_of_scores: GradientOfScores, theta: Theta, batch: Sequence[Example]
    ) -> tuple[float, Theta]:
        """The mean loss at theta and its gradient, by the engine's way to differentiate scores; only losses of scores
        have one."""
        raise TypeError(f"{type(self).__name__} has no gradient")


def means(measured: Sequence[Mapping[str, float]], weights: Sequence[float]) -> dict[str, float]:
    """By name, over those that have it."""
    names = dict.fromkeys(name for each in measured for name in each)
    found = {}
    for name in names:
        pairs = [(each[name], weight) for each, weight in zip(measured, weights, strict=True) if name in each]
        values, sizes = np.array(pairs).T
        found[name] = float(np.average(values, weights=sizes))
    return found
