"""Scores of generated answers: token F1 and exact match, as SQuAD defines them (Rajpurkar et al., 2016, arXiv
1606.05250).
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(answer: str, gold: str) -> float:
    """1 where both are the same without case, punctuation, articles and spaces, else 0."""
    return float(_words(answer) == _words(gold))


def token_f1(answer: str, gold: str) -> float:
    """The F1 of the words that both have; of a text without words, whether the other has none either."""
    given, expected = _words(answer), _words(gold)
    if not given or not expected:
        return float(given == expected)
    return 2 * (Counter(given) & Counter(expected)).total() / (len(given) + len(expected))


def mean_best(score: Callable[[str, str], float], answers: Sequence[str], golds: Sequence[Sequence[str]]) -> float:
    """The mean over answers of the best score that one has with any of its right answers."""
    return float(np.mean([max(score(a, gold) for gold in right) for a, right in zip(answers, golds, strict=True)]))


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()
