"""A run as its journal has it: theta, optimizer and estimator at any step, and what a run that goes on must share."""

from collections.abc import Sequence
from dataclasses import fields

from zotune.run.journal import Entry, Header, history
from zotune.zo.estimators import Estimator
from zotune.zo.optimizers import Tensors
from zotune.zo.protocol import Theta


def rebuild(
    header: Header, entries: Sequence[Entry], estimator: Estimator, start: Theta | None
) -> tuple[Theta, Tensors, Estimator]:
    """Theta, the optimizer's state and the estimator as the run that wrote `entries` left them.

    Args:
        estimator: as the run began with it.
        start: the base model's parameters, where these are what is trained.
    """
    points = history(header, entries, start)
    theta, state = next(points)
    for entry, (next_theta, next_state) in zip(entries, points, strict=True):
        estimator = estimator.after(theta, entry.slopes)
        theta, state = next_theta, next_state
    return theta, state, estimator


def changes(before: Header, now: Header) -> list[str]:
    """What a journal was started with and no longer is, in words for the user."""
    names = [f"{name} examples" for name in before.data if before.data[name] != now.data.get(name)]
    for field in fields(Header):
        if field.name == "optimizer":  # what was left to a default may be written out in one and not in the other
            names += [field.name] if before.make_optimizer() != now.make_optimizer() else []
        elif field.name not in ("data", "base_model") and getattr(before, field.name) != getattr(now, field.name):
            names.append(field.name)
    return names
