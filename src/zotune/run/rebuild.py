"""A run where it stopped: theta, the optimizer's state and the estimator, from its journal and its checkpoints."""

from collections.abc import Sequence
from pathlib import Path

from zotune.errors import InputError
from zotune.run.checkpoint import checkpoint_steps
from zotune.run.folder import RunFolder
from zotune.run.journal import Entry, Header, Point, history, latest
from zotune.run.lost import Lost
from zotune.run.metrics import StepEvent, read_metrics
from zotune.zo.estimators import Estimator
from zotune.zo.protocol import Theta


def check_journal_is_whole(folder: RunFolder, entries: Sequence[Entry]) -> None:
    """Refuse a run whose metrics tell of steps that its journal does not have.

    A step is in the metrics a moment before it is in the journal, so one more is what a crash leaves. More are of a run
    that kept no journal, as backpropagation did not in older versions: to go on with it would be another run.

    Raises:
        InputError: with the two numbers.
    """
    if not folder.metrics.is_file():
        return
    measured = max((event.step for event in read_metrics(folder.metrics) if isinstance(event, StepEvent)), default=0)
    if measured > len(entries) + 1:
        raise InputError(
            f"{folder.path}: metrics.jsonl tells of {measured} steps and journal.jsonl of {len(entries)}, so theta "
            "cannot be rebuilt; its adapter/ and best/ are what is left of the run"
        )


def rebuild(
    header: Header, entries: Sequence[Entry], estimator: Estimator, start: Theta | None, checkpoints: Path, lost: Lost
) -> tuple[Point, Estimator]:
    """The last point of a run from which it can go on, and the estimator there.

    That is the end of `entries`; or, where the run learns by gradients, the last whole checkpoint.

    Args:
        estimator: as the run began with it.
        start: the base model's parameters, where these are what is trained.
        lost: is shown theta on the way, where it is at hand.
    """
    if not estimator.seeded:
        point = latest(header, entries, start, checkpoints)
        if start is None:
            _show(header, entries, point, checkpoints, lost)
        return point, estimator
    points = history(header, entries, start)
    theta, state = next(points)
    lost.look_at(0, theta)
    for entry, (next_theta, next_state) in zip(entries, points, strict=True):
        estimator = estimator.after(theta, entry.slopes)
        theta, state = next_theta, next_state
        lost.look_at(entry.step, theta)
    return Point(len(entries), theta, state), estimator


def _show(header: Header, entries: Sequence[Entry], last: Point, checkpoints: Path, lost: Lost) -> None:
    """Show theta at the steps up to `last` that have a checkpoint."""
    for step in [0, *(step for step in checkpoint_steps(checkpoints) if 0 < step <= last.step)]:
        if lost.needs(step):
            point = latest(header, entries[:step], None, checkpoints)
            if point.step == step:
                lost.look_at(step, point.theta)
