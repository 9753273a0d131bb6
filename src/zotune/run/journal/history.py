"""Theta at any step of a run, rebuilt from its journal with no model, and from its checkpoints where it has some."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from zotune.adapter.forms import initial_theta
from zotune.errors import InputError
from zotune.run.checkpoint import nearest
from zotune.run.journal.entries import Checkpointed, Entry
from zotune.run.journal.header import Header
from zotune.zo.optimizers import Tensors
from zotune.zo.protocol import Theta


class NeedsModel(InputError):
    """The step asked for lies between checkpoints; `latest` is the last one before it that needs no model."""

    def __init__(self, message: str, latest: int) -> None:
        super().__init__(message)
        self.latest = latest


@dataclass(frozen=True)
class Point:
    """Where a run is after `step` steps: theta and the state of its optimizer."""

    step: int
    theta: Theta
    state: Tensors


def replay(
    header: Header, entries: Sequence[Entry], start: Theta | None = None, checkpoints: Path | None = None
) -> tuple[Theta, Tensors]:
    """Theta and the optimizer's state after `entries`, the same bits as in the run that wrote them.

    Args:
        start: the base model's parameters, which are moved, where the header has no `lora`.
        checkpoints: the folder of the run's checkpoints, where it has some.

    Raises:
        NeedsModel: the step lies between two checkpoints.
    """
    point = latest(header, entries, start, checkpoints)
    if point.step < len(entries):
        raise NeedsModel(
            f"--step {len(entries)}: this run learned by gradients, which its journal does not hold, and it has no "
            f"whole checkpoint of that step; the last one before it is of step {point.step}",
            point.step,
        )
    return point.theta, point.state


def latest(
    header: Header, entries: Sequence[Entry], start: Theta | None = None, checkpoints: Path | None = None
) -> Point:
    """The last point of the run within `entries` that can be had without a model; arguments as for `replay`.

    That is the end of `entries`, but where a step between the last whole checkpoint and the end took a gradient.
    """
    digests = {entry.step: entry.update.theta_digest for entry in entries if isinstance(entry.update, Checkpointed)}
    point = Point(0, *_beginning(header, start))
    found = nearest(checkpoints, len(entries), digests) if digests and checkpoints else None
    if found is not None:
        point = Point(found.step, found.theta, found.state)
    rest = entries[point.step :]
    count = next((index for index, entry in enumerate(rest) if isinstance(entry.update, Checkpointed)), len(rest))
    (last,) = deque(_steps(header, rest[:count], point), maxlen=1)
    return last


def history(header: Header, entries: Sequence[Entry], start: Theta | None = None) -> Iterator[tuple[Theta, Tensors]]:
    """Theta and the optimizer's state before each of `entries`, whose updates are slopes, and after the last."""
    for point in _steps(header, entries, Point(0, *_beginning(header, start))):
        yield point.theta, point.state


def _beginning(header: Header, start: Theta | None) -> tuple[Theta, Tensors]:
    theta: Theta = initial_theta(header.tensors, header.seed, header.lora) if start is None else start
    return theta, header.make_optimizer().init(theta)


def _steps(header: Header, entries: Sequence[Entry], point: Point) -> Iterator[Point]:
    """`point`, and the points after each of `entries`, which follow it."""
    optimizer, theta, state = header.make_optimizer(), point.theta, point.state
    yield point
    for entry in entries:
        assert not isinstance(entry.update, Checkpointed)
        theta, state = optimizer.update(theta, state, entry.update, entry.learning_rate)
        yield Point(entry.step, theta, state)
