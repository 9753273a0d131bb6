"""Macro F1, as a score of answers and as what is trained on. It belongs to a batch, and no example has one of its own.

As in scikit-learn, the F1 of a label is 0 where nothing is right.
"""

from collections.abc import Sequence

import numpy as np

from zotune.zo.objectives.base import Losses, Objective
from zotune.zo.objectives.scored import Accuracy, candidate_logits
from zotune.zo.protocol import Engine, Example, Probe, Theta


def macro_f1(labels: Sequence[int | None], answers: Sequence[int]) -> float:
    """The mean over the labels that occur in either of 2 right / (times expected + times answered)."""
    right, answered = np.array(labels), np.array(answers)
    scores = []
    for label in np.union1d(right, answered):
        both = np.sum((right == label) & (answered == label))
        scores.append(2 * both / (np.sum(right == label) + np.sum(answered == label)))
    return float(np.mean(scores))


class MacroF1(Objective):
    """1 - macro F1 of a probe's answers to the batch, the same for every example of it; it has no gradient.

    The mean over batches is not the macro F1 of all data, and the less so the smaller the batches are: a label that is
    seldom in the data is in few of them. An evaluation has that of all its examples together.
    """

    takes_labels = True
    needs_same_labels = True

    def __call__(self, engine: Engine, theta: Theta, probes: Sequence[Probe], batch: Sequence[Example]) -> Losses:
        answers = candidate_logits(engine.score(theta, probes, batch, False)).argmax(axis=-1).tolist()
        losses = [1.0 - macro_f1([example.label for example in batch], of_probe) for of_probe in answers]
        return Losses(np.repeat(np.array(losses)[:, None], len(batch), axis=1), answers=answers)

    def mean_loss(self, found: Sequence[Losses], examples: Sequence[Example]) -> float:
        """Of all examples at once: a mean over batches would be another number."""
        answers = [answer for each in found for answer in (each.answers or [()])[0]]
        return 1.0 - macro_f1([example.label for example in examples], answers)

    def by_example(self) -> Objective:
        """The accuracy, which changes where the answers do."""
        return Accuracy()
