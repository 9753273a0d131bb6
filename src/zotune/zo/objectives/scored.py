"""Losses of the candidates' log-probabilities (MeZO, arXiv 2305.17333, and its released code), with their derivatives
beside them; and the accuracy, which has none.

A loss may be multiplied by a number of its record. Where that is a reward, or an advantage, the step is a policy
gradient's (REINFORCE) for answers that are given: -reward * log p(answer | prompt), by token.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from zotune.zo.objectives.base import Losses, Objective
from zotune.zo.protocol import Engine, Example, GradientOfScores, Probe, Scores, Theta


@dataclass(frozen=True)
class ScoredObjective(Objective):
    """A loss of the candidates' log-probabilities.

    Args:
        weight_field: of records, by whose number each loss is multiplied; None: all count the same.
    """

    weight_field: str | None = None

    has_gradient: ClassVar[bool] = True
    normalized: ClassVar[bool] = True  # whether it needs log-probabilities, and not only differences between candidates

    def __call__(self, engine: Engine, theta: Theta, probes: Sequence[Probe], batch: Sequence[Example]) -> Losses:
        scores, weights = engine.score(theta, probes, batch, self.normalized), self.weights(batch)
        return Losses(
            weights * self.losses(scores, batch),
            None if scores.tangents is None else weights * self.derivatives(scores, batch),
            candidate_logits(scores).argmax(axis=-1).tolist(),
        )

    def gradient(
        self, gradient_of_scores: GradientOfScores, theta: Theta, batch: Sequence[Example]
    ) -> tuple[float, Theta]:
        weights = self.weights(batch)
        scores, gradient = gradient_of_scores(
            theta, batch, lambda scores: weights[:, None] * self.cotangents(scores, batch), self.normalized
        )
        return float((weights * self.losses(scores, batch)).mean()), gradient

    def weights(self, batch: Sequence[Example]) -> np.ndarray:
        """Float64 [example]."""
        if self.weight_field is None:
            return np.ones(len(batch))
        return np.array([example.columns[self.weight_field] for example in batch], dtype=np.float64)

    @abstractmethod
    def losses(self, scores: Scores, batch: Sequence[Example]) -> np.ndarray:
        """Float64 [probe, example], before they are weighted."""

    @abstractmethod
    def derivatives(self, scores: Scores, batch: Sequence[Example]) -> np.ndarray:
        """How the losses change as `scores.log_probs` do by `scores.tangents`: float64 [probe, example]."""

    @abstractmethod
    def cotangents(self, scores: Scores, batch: Sequence[Example]) -> np.ndarray:
        """The derivative of the mean loss by each log-probability, of one probe: float64 [example, candidate]."""


def candidate_logits(scores: Scores) -> np.ndarray:
    """Mean log-probability per token of each candidate, float64 [probe, example, candidate]; absent ones -inf."""
    return _per_token(scores.log_probs, scores)


class CrossEntropy(ScoredObjective):
    """-log softmax over the candidates' mean token log-probabilities, at the right one."""

    takes_labels = True
    normalized = False

    def losses(self, scores: Scores, batch: Sequence[Example]) -> np.ndarray:
        logits = candidate_logits(scores)
        highest = logits.max(axis=-1, keepdims=True)
        normalizer = highest[..., 0] + np.log(np.exp(logits - highest).sum(axis=-1))
        return normalizer - _right(logits, batch)

    def derivatives(self, scores: Scores, batch: Sequence[Example]) -> np.ndarray:
        """sum_c softmax_c logit'_c - logit'_right."""
        tangents = _tangents(scores)
        return (_softmax(candidate_logits(scores)) * tangents).sum(axis=-1) - _right(tangents, batch)

    def cotangents(self, scores: Scores, batch: Sequence[Example]) -> np.ndarray:
        """(softmax_c - [c is right]) / tokens of c / examples."""
        by_logit = _softmax(candidate_logits(scores)[0])
        by_logit[np.arange(len(batch)), np.array([example.label for example in batch])] -= 1.0
        return _per_token(by_logit, scores) / len(batch)


class TokenNll(ScoredObjective):
    """Mean negative log-likelihood per token of the only candidate."""

    takes_labels = False

    def losses(self, scores: Scores, batch: Sequence[Example]) -> np.ndarray:
        return -candidate_logits(scores)[..., 0]

    def derivatives(self, scores: Scores, batch: Sequence[Example]) -> np.ndarray:
        return -_tangents(scores)[..., 0]

    def cotangents(self, scores: Scores, batch: Sequence[Example]) -> np.ndarray:
        """-1 / tokens / examples, of the only candidate."""
        of_first = np.zeros(scores.num_tokens.shape)
        of_first[:, 0] = -1.0
        return _per_token(of_first, scores) / len(batch)


class Accuracy(Objective):
    """1 where the most likely candidate is not right, else 0: the accuracy itself, which has no gradient (MeZO, section
    3.3)."""

    takes_labels = True

    def __call__(self, engine: Engine, theta: Theta, probes: Sequence[Probe], batch: Sequence[Example]) -> Losses:
        answers = candidate_logits(engine.score(theta, probes, batch, False)).argmax(axis=-1)  # [probe, example]
        right = [[example.is_right(answer) for answer, example in zip(row, batch, strict=True)] for row in answers]
        return Losses(1.0 - np.array(right, dtype=np.float64), answers=answers.tolist())


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights: np.ndarray = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def _per_token(values: np.ndarray, scores: Scores) -> np.ndarray:
    return values.astype(np.float64) / np.maximum(scores.num_tokens, 1)


def _tangents(scores: Scores) -> np.ndarray:
    """Derivatives of `candidate_logits`."""
    assert scores.tangents is not None
    return _per_token(scores.tangents, scores)


def _right(values: np.ndarray, batch: Sequence[Example]) -> np.ndarray:
    """Those of the right candidates: [probe, example]."""
    labels = np.array([example.label for example in batch])
    return np.take_along_axis(values, labels[None, :, None], axis=-1)[..., 0]


cross_entropy = CrossEntropy()
token_nll = TokenNll()
