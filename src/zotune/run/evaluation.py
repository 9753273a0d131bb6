"""Evaluation: the mean loss of theta on examples, and where every example has a label, accuracy and macro F1."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zotune.run.scores import macro_f1
from zotune.zo.objectives import Objective, Sample, means
from zotune.zo.protocol import AT_THETA, Engine, Example, Theta


@dataclass(frozen=True)
class Evaluation:
    """Metrics over `num_examples`.

    `predictions` are indices of candidates, or texts where answers were generated; absent where there are no labels.
    `macro_f1` is there where all examples have the same candidates, `exact_match` and `token_f1` where answers were
    generated. Shares are from 0 to 1. Where a reward is the objective, `measured` has its mean and what else was
    measured of the texts, which `samples` are.
    """

    accuracy: float | None
    loss: float
    num_examples: int
    predictions: tuple[Any, ...] | None = None
    macro_f1: float | None = None
    exact_match: float | None = None
    token_f1: float | None = None
    measured: Mapping[str, float] = field(default_factory=dict)
    samples: Sequence[Sample] = field(default=(), repr=False)


def evaluate(
    engine: Engine, theta: Theta, objective: Objective, examples: Sequence[Example], batch_size: int = 256
) -> Evaluation:
    """Mean objective, and accuracy and macro F1 where every example has a label, at theta."""
    objective = objective.for_evaluation()
    losses: list[np.ndarray] = []
    answers: list[Any] = []
    samples: list[Sample] = []
    measured: list[Mapping[str, float]] = []
    for start in range(0, len(examples), batch_size):
        found = objective(engine, theta, [AT_THETA], examples[start : start + batch_size])
        losses.append(found.values[0])
        answers.extend(found.answers[0] if found.answers is not None else ())
        samples.extend(found.samples)
        measured.append(found.measured)
    loss, count = float(np.concatenate(losses).mean()), sum(map(len, losses))
    if samples:
        sizes = [len(of_batch) for of_batch in losses]
        return Evaluation(None, loss, count, measured=means(measured, sizes), samples=samples)
    labels = [example.label for example in examples]
    if any(label is None for label in labels) or len(answers) < len(labels):
        return Evaluation(None, loss, count)
    accuracy = float(np.mean([example.is_right(answer) for example, answer in zip(examples, answers, strict=True)]))
    alike = all(example.candidates == examples[0].candidates for example in examples)
    f1 = macro_f1(labels, answers) if alike and all(isinstance(answer, int) for answer in answers) else None
    return Evaluation(accuracy, loss, len(examples), tuple(answers), f1)
