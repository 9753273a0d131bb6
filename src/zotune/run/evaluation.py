"""Evaluation: the mean loss of theta on examples, and where every example has a label, accuracy and macro F1."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from zotune.run.own_metrics import OwnMetrics
from zotune.zo.objectives import Losses, Objective, Sample, macro_f1, means
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
    scores: Mapping[str, float] = field(default_factory=dict)
    """The metrics that were asked for by --metrics or `compute_metrics`."""


def evaluate(
    engine: Engine,
    theta: Theta,
    objective: Objective,
    examples: Sequence[Example],
    batch_size: int = 256,
    metrics: OwnMetrics | None = None,
) -> Evaluation:
    """Mean objective, and accuracy and macro F1 where every example has a label, at theta; and `metrics`."""
    found = _evaluated(engine, theta, objective, examples, batch_size)
    if metrics is None:
        return found
    scores, texts = metrics(engine, theta, examples)
    return replace(found, scores=scores, predictions=found.predictions if texts is None else texts)


def _evaluated(
    engine: Engine, theta: Theta, objective: Objective, examples: Sequence[Example], batch_size: int
) -> Evaluation:
    objective = objective.for_evaluation()
    found: list[Losses] = []
    for start in range(0, len(examples), batch_size):
        found.append(objective(engine, theta, [AT_THETA], examples[start : start + batch_size]))
    answers = [answer for each in found if each.answers is not None for answer in each.answers[0]]
    samples = [sample for each in found for sample in each.samples]
    sizes = [each.values.shape[1] for each in found]
    loss, count = objective.mean_loss(found, examples), sum(sizes)
    if samples:
        measured = means([each.measured for each in found], sizes)
        return Evaluation(None, loss, count, measured=measured, samples=samples)
    labels = [example.label for example in examples]
    if any(label is None for label in labels) or len(answers) < len(labels):
        return Evaluation(None, loss, count)
    accuracy = float(np.mean([example.is_right(answer) for example, answer in zip(examples, answers, strict=True)]))
    alike = all(example.candidates == examples[0].candidates for example in examples)
    f1 = macro_f1(labels, answers) if alike and all(isinstance(answer, int) for answer in answers) else None
    return Evaluation(accuracy, loss, len(examples), tuple(answers), f1)
