"""Optimizers turn what a step learned into the next theta; `base` states what each must do.

One file for each family. An optimizer is a choice of `--optimizer` once it has a row in the table below.
"""

from collections.abc import Mapping
from typing import Any

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
    "make_optimizer",
    "orthogonalized",
]

OPTIMIZERS = {"sgd": Sgd, "sign": Sign, "adam": Adam, "adamw": AdamW, "muon": Muon, "hizoo": HizooSgd}

_BEFORE = {"adam_beta1": "beta1", "adam_beta2": "beta2", "adam_epsilon": "eps", "hizoo_smoothing": "smoothing"}


def make_optimizer(record: Mapping[str, Any]) -> Optimizer:
    """The optimizer that a journal names: its row in OPTIMIZERS and its arguments, which had other names before."""
    arguments = {_BEFORE.get(name, name): value for name, value in record.items() if name != "name"}
    made: Optimizer = OPTIMIZERS[record["name"]](**arguments)
    return made
