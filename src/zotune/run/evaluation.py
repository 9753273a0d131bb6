"""Evaluation: the mean loss of theta on examples, and accuracy where every example has a label."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zotune.zo.objectives import Objective
from zotune.zo.protocol import AT_THETA, Engine, Example, Theta


@dataclass(frozen=True)
class Evaluation:
    """Metrics over `num_examples`; `predictions` are indices of candidates, absent where there are no labels."""

    accuracy: float | None
    loss: float
    num_examples: int
    predictions: tuple[int, ...] | None = None


def evaluate(
    engine: Engine, theta: Theta, objective: Objective, examples: Sequence[Example], batch_size: int = 256
) -> Evaluation:
    """Mean objective, and accuracy where every example has a label, at theta."""
    losses: list[np.ndarray] = []
    answers: list[Any] = []
    for start in range(0, len(examples), batch_size):
        found = objective(engine, theta, [AT_THETA], examples[start : start + batch_size])
        losses.append(found.values[0])
        answers.extend(found.answers[0] if found.answers is not None else ())
    loss = float(np.concatenate(losses).mean())
    labels = [example.label for example in examples]
    if any(label is None for label in labels) or len(answers) < len(labels):
        return Evaluation(None, loss, len(examples))
    right = [
        answer == example.label or answer in example.also_right
        for example, answer in zip(examples, answers, strict=True)
    ]
    accuracy = float(np.mean(right))
    return Evaluation(accuracy, loss, len(examples), tuple(answers))
