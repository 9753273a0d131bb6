"""Optimizers turn what a step learned into the next theta; `base` states what each must do.

One file for each family. An optimizer is a choice of `--optimizer` once it has a row in the table below.
"""

from zotune.zo.optimizers.adam import Adam, AdamW
from zotune.zo.optimizers.base import CLIP_AFTER, CLIP_WINDOW, Optimizer, Tensors, clipped
from zotune.zo.optimizers.hizoo import HizooSgd
from zotune.zo.optimizers.in_place import InPlace
from zotune.zo.optimizers.muon import Muon, orthogonalized
from zotune.zo.optimizers.sgd import Sgd, Sign

__all__ = [
    "CLIP_AFTER",
    "CLIP_WINDOW",
    "OPTIMIZERS",
    "Adam",
    "AdamW",
    "HizooSgd",
    "InPlace",
    "Muon",
    "Optimizer",
    "Sgd",
    "Sign",
    "Tensors",
    "clipped",
    "orthogonalized",
]

OPTIMIZERS = {"sgd": Sgd, "sign": Sign, "adam": Adam, "adamw": AdamW, "muon": Muon, "hizoo": HizooSgd}
