"""Objectives ask an engine about a batch and give one loss per probe and example; `base` states what each must do.

One file for each family. An objective is a choice of `--objective` once it has a row in the table below.
"""

from zotune.zo.objectives.base import Losses, Objective, Sample, means
from zotune.zo.objectives.f1 import MacroF1, macro_f1
from zotune.zo.objectives.reward import RewardObjective
from zotune.zo.objectives.scored import (
    Accuracy,
    CrossEntropy,
    ScoredObjective,
    TokenNll,
    candidate_logits,
    cross_entropy,
    token_nll,
)

__all__ = [
    "OBJECTIVES",
    "Accuracy",
    "CrossEntropy",
    "Losses",
    "MacroF1",
    "Objective",
    "RewardObjective",
    "Sample",
    "ScoredObjective",
    "TokenNll",
    "candidate_logits",
    "cross_entropy",
    "macro_f1",
    "means",
    "token_nll",
]

OBJECTIVES: dict[str, Objective] = {
    "cross_entropy": cross_entropy,
    "token_nll": token_nll,
    "accuracy": Accuracy(),
    "f1": MacroF1(),
    "reward": RewardObjective(),
}
