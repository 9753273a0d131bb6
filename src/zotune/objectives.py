"""Objectives turn scores into one loss per probe and example. Sources: MeZO (arXiv 2305.17333), its released code."""

from collections.abc import Callable, Sequence

import numpy as np

from zotune.engine.protocol import Example, Scores

Objective = Callable[[Scores, Sequence[Example]], np.ndarray]


def candidate_logits(scores: Scores) -> np.ndarray:
    """Mean log-probability per token of each candidate, float64 [probe, example, candidate]; absent ones -inf."""
    return scores.log_probs.astype(np.float64) / np.maximum(scores.num_tokens, 1)


def cross_entropy(scores: Scores, batch: Sequence[Example]) -> np.ndarray:
    """-log softmax over the candidates' mean token log-probabilities, at the right one: float64 [probe, example]."""
    logits = candidate_logits(scores)
    highest = logits.max(axis=-1, keepdims=True)
    normalizer = highest[..., 0] + np.log(np.exp(logits - highest).sum(axis=-1))
    labels = np.array([example.label for example in batch])
    return normalizer - np.take_along_axis(logits, labels[None, :, None], axis=-1)[..., 0]


def token_nll(scores: Scores, batch: Sequence[Example]) -> np.ndarray:
    """Mean negative log-likelihood per token of the only candidate: float64 [probe, example]."""
    return -candidate_logits(scores)[..., 0]


OBJECTIVES: dict[str, Objective] = {"cross_entropy": cross_entropy, "token_nll": token_nll}
