"""Objectives turn scores into one loss per probe and example. Sources: MeZO (arXiv 2305.17333), its released code.

Each has its derivative along the probes' directions beside it, for scores with tangents.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from zotune.zo.protocol import Example, Scores


class Objective(ABC):
    """A loss and its derivative, both float64 [probe, example]."""

    @abstractmethod
    def __call__(self, scores: Scores, batch: Sequence[Example]) -> np.ndarray:
        """The losses."""

    @abstractmethod
    def derivative(self, scores: Scores, batch: Sequence[Example]) -> np.ndarray:
        """How the losses change as `scores.log_probs` do by `scores.tangents`."""


def candidate_logits(scores: Scores) -> np.ndarray:
    """Mean log-probability per token of each candidate, float64 [probe, example, candidate]; absent ones -inf."""
    return _per_token(scores.log_probs, scores)


class CrossEntropy(Objective):
    """-log softmax over the candidates' mean token log-probabilities, at the right one."""

    def __call__(self, scores: Scores, batch: Sequence[Example]) -> np.ndarray:
        logits = candidate_logits(scores)
        highest = logits.max(axis=-1, keepdims=True)
        normalizer = highest[..., 0] + np.log(np.exp(logits - highest).sum(axis=-1))
        return normalizer - _right(logits, batch)

    def derivative(self, scores: Scores, batch: Sequence[Example]) -> np.ndarray:
        """sum_c softmax_c logit'_c - logit'_right."""
        logits, tangents = candidate_logits(scores), _tangents(scores)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return (weights * tangents).sum(axis=-1) - _right(tangents, batch)


class TokenNll(Objective):
    """Mean negative log-likelihood per token of the only candidate."""

    def __call__(self, scores: Scores, batch: Sequence[Example]) -> np.ndarray:
        return -candidate_logits(scores)[..., 0]

    def derivative(self, scores: Scores, batch: Sequence[Example]) -> np.ndarray:
        return -_tangents(scores)[..., 0]


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
OBJECTIVES: dict[str, Objective] = {"cross_entropy": cross_entropy, "token_nll": token_nll}
