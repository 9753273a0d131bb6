"""A run where it stopped: theta, the optimizer's state and the estimator, from its journal and its checkpoints."""

from collections.abc import Sequence
from pathlib import Path

from zotune.run.journal import Entry, Header, Point, history, latest
from zotune.zo.estimators import Estimator
from zotune.zo.protocol import Theta


def rebuild(
    header: Header, entries: Sequence[Entry], estimator: Estimator, start: Theta | None, checkpoints: Path
) -> tuple[Point, Estimator]:
    """The last point of a run from which it can go on, and the estimator there.

    That is the end of `entries`; or, where the run learns by gradients, the last whole checkpoint.

    Args:
        estimator: as the run began with it.
        start: the base model's parameters, where these are what is trained.
    """
    if not estimator.seeded:
        return latest(header, entries, start, checkpoints), estimator
    points = history(header, entries, start)
    theta, state = next(points)
    for entry, (next_theta, next_state) in zip(entries, points, strict=True):
        estimator = estimator.after(theta, entry.slopes)
        theta, state = next_theta, next_state
    return Point(len(entries), theta, state), estimator
