"""metrics.jsonl: what was measured in a run, one object a line; and the numbers read off it.

`event` is `step` or `eval`. Times and counters live here and not in the journal: they differ from run to run.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from zotune.errors import InputError
from zotune.files import LineFile, write_whole

logger = logging.getLogger("zotune")


@dataclass(frozen=True)
class StepEvent:
    """One training step. Counters are of this step alone; `slopes` are the values, direction by direction."""

    step: int
    loss: float
    learning_rate: float
    slopes: tuple[float, ...]
    step_time_s: float
    forward_passes: int
    tokens_computed: int
    tokens_reused: int
    event: str = "step"
    measured: Mapping[str, float] = field(default_factory=dict)
    """What the objective measured beside the loss, such as the mean reward."""


@dataclass(frozen=True)
class EvalEvent:
    """One evaluation after `step` steps. `accuracy` and `macro_f1` are None where the task has no labels."""

    step: int
    split: str
    accuracy: float | None
    loss: float
    num_examples: int
    time_s: float
    event: str = "eval"
    macro_f1: float | None = None
    measured: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, Any]:
        values = {
            "accuracy": self.accuracy, "loss": self.loss, "num_examples": self.num_examples, "macro_f1": self.macro_f1
        }  # fmt: skip
        more = {"measured": self.measured, "scores": self.scores}
        return values | {name: each for name, each in more.items() if each}


class MetricsFile:
    """Appends events; reopened at a step, it forgets what came after it.

    An evaluation is on disk when `append` returns, with all that came before; a step may be lost in a power cut.
    """

    def __init__(self, path: Path, keep_until_step: int = 0) -> None:
        kept = [e for e in read_metrics(path) if e.step <= keep_until_step] if path.exists() else []
        write_metrics(path, kept)
        self.events: list[StepEvent | EvalEvent] = kept
        self._file = LineFile(path)

    def append(self, event: StepEvent | EvalEvent) -> None:
        """Raises OSError where the disk refuses; the lines before stay whole."""
        self._file.append(_line(event), durable=isinstance(event, EvalEvent))
        self.events.append(event)

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[StepEvent | EvalEvent]:
    """The events of a run.

    What a power cut leaves at the end, a line cut short or bytes that are no text, is left out with a warning.

    Raises:
        InputError: no such file, or a damaged line, with its number.
    """
    try:
        *lines, rest = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{path.parent} is not a run folder: cannot read {path.name} ({error.strerror})") from error
    found = [_event(line) for line in lines]
    whole = next((index for index, event in enumerate(found) if isinstance(event, str)), len(lines))
    events = [event for event in found if not isinstance(event, str)]
    is_text = all(32 <= byte < 127 for byte in b"".join(lines[whole:]))
    if len(events) > whole or (whole < len(lines) and is_text):
        raise InputError(f"{path}: line {whole + 1} is damaged: {found[whole]}")
    if whole < len(lines) or rest:
        logger.warning("%s: line %d was cut short; dropped", path, whole + 1)
    return events


def write_metrics(path: Path, events: Sequence[StepEvent | EvalEvent]) -> None:
    """Write the events of a run whole, in the place of what is there."""
    write_whole(path, b"".join(_line(event) for event in events))


def _event(line: bytes) -> StepEvent | EvalEvent | str:
    """What a line holds, or why it holds none."""
    try:
        value = json.loads(line)
        if value["event"] == "step":
            return StepEvent(**value | {"slopes": tuple(value["slopes"])})
        return EvalEvent(**value)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        return str(error)


def best_of(evals: list[EvalEvent]) -> EvalEvent:
    """The evaluation with the lowest loss; the earliest of equals. What is no number is behind all that are."""
    return min(evals, key=lambda event: event.loss if math.isfinite(event.loss) else math.inf)


def kv_reuse(tokens_reused: int, tokens_computed: int) -> float:
    """The share of tokens served from cache, of all that were needed."""
    return tokens_reused / max(1, tokens_reused + tokens_computed)


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a binomial share (Wilson, 1927)."""
    z = 1.959963984540054
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file whole."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


def _line(event: StepEvent | EvalEvent) -> bytes:
    value = {name: each for name, each in asdict(event).items() if name not in ("measured", "scores") or each}
    return (json.dumps({"event": value.pop("event"), **value}) + "\n").encode()
