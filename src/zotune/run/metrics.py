"""metrics.jsonl: what was measured in a run, one object a line; and the numbers read off it.

`event` is `step` or `eval`. Times and counters live here and not in the journal: they differ from run to run.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zotune.errors import InputError


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


@dataclass(frozen=True)
class EvalEvent:
    """One evaluation after `step` steps. `accuracy` is None where the task has no labels."""

    step: int
    split: str
    accuracy: float | None
    loss: float
    num_examples: int
    time_s: float
    event: str = "eval"

    @property
    def metrics(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy, "loss": self.loss, "num_examples": self.num_examples}


class MetricsFile:
    """Appends events; reopened at a step, it forgets what came after it."""

    def __init__(self, path: Path, keep_until_step: int = 0) -> None:
        kept = [e for e in read_metrics(path) if e.step <= keep_until_step] if path.exists() else []
        fresh = path.with_suffix(".new")
        fresh.write_text("".join(_line(event) for event in kept), encoding="utf-8")
        fresh.replace(path)
        self.events: list[StepEvent | EvalEvent] = kept
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def append(self, event: StepEvent | EvalEvent) -> None:
        self.events.append(event)
        self._file.write(_line(event))

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[StepEvent | EvalEvent]:
    """The events of a run; a last line cut short is left out.

    Raises:
        InputError: no such file, or a damaged line, with its number.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"{path.parent} is not a run folder: cannot read {path.name} ({error.strerror})") from error
    events: list[StepEvent | EvalEvent] = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            value = json.loads(line)
            if value["event"] == "step":
                events.append(StepEvent(**value | {"slopes": tuple(value["slopes"])}))
            else:
                events.append(EvalEvent(**value))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: line {number} is damaged: {error}") from error
    return events


def best_of(evals: list[EvalEvent]) -> EvalEvent:
    """The evaluation with the lowest loss; the earliest of equals."""
    return min(evals, key=lambda event: event.loss)


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
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _line(event: StepEvent | EvalEvent) -> str:
    value = asdict(event)
    return json.dumps({"event": value.pop("event"), **value}) + "\n"
