"""Evaluation: the mean loss of theta on examples, and where every example has a label, accuracy and macro F1."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zotune.run.scores import macro_f1
from zotune.zo.objectives import Objective
from zotune.zo.protocol import AT_THETA, Engine, Example, Theta


@dataclass(frozen=True)
class Evaluation:
    """Metrics over `num_examples`.

    `predictions` are indices of candidates, or texts where answers were generated; absent where there are no labels.
    `macro_f1` is there where all examples have the same candidates, `exact_match` and `token_f1` where answers were
    generated. Shares are from 0 to 1.
    """

    accuracy: float | None
    loss: float
    num_examples: int
    predictions: tuple[Any, ...] | None = None
    macro_f1: float | None = None
    exact_match: float | None = None
    token_f1: float | None = None


def evaluate(
    engine: Engine, theta: Theta, objective: Objective, examples: Sequence[Example], batch_size: int = 256
) -> Evaluation:
    """Mean objective, and accuracy and macro F1 where every example has a label, at theta."""
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
    alike = all(example.candidates == examples[0].candidates for example in examples)
    f1 = macro_f1(labels, answers) if alike and all(isinstance(answer, int) for answer in answers) else None
    return Evaluation(accuracy, loss, len(examples), tuple(answers), f1)
