"""Estimators say where to probe and turn the losses there into slopes; `base` states what each must do.

One file for each family. An estimator is a choice of `--estimator` once it has a row in the table below.
"""

from zotune.zo.estimators.backprop import Backprop
from zotune.zo.estimators.base import Estimate, Estimator, ProbeEstimator
from zotune.zo.estimators.forward_mode import Jvp
from zotune.zo.estimators.lens import LensGradient
from zotune.zo.estimators.one_sided import Fzoo, OneSided
from zotune.zo.estimators.shaped import SHAPINGS, EvolutionStrategy, centred_ranks
from zotune.zo.estimators.svrg import Svrg
from zotune.zo.estimators.two_sided import AdaptiveSpsa, Hizoo, Spsa
from zotune.zo.updates import Slope

__all__ = [
    "ESTIMATORS",
    "SHAPINGS",
    "AdaptiveSpsa",
    "Backprop",
    "Estimate",
    "Estimator",
    "EvolutionStrategy",
    "Fzoo",
    "Hizoo",
    "Jvp",
    "LensGradient",
    "OneSided",
    "ProbeEstimator",
    "Slope",
    "Spsa",
    "Svrg",
    "centred_ranks",
]

ESTIMATORS: dict[str, type[Estimator]] = {
    "spsa": Spsa,
    "one_sided": OneSided,
    "fzoo": Fzoo,
    "es": EvolutionStrategy,
    "svrg": Svrg,
    "hizoo": Hizoo,
    "adaptive": AdaptiveSpsa,
    "jvp": Jvp,
    "lens": LensGradient,
    "backprop": Backprop,
}
