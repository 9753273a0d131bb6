"""Reports a run to trackers as it goes: losses, evaluations, learning rate, size of slopes, tokens a second, samples.

A tracker that fails in the middle of a run, as when its server is gone, is left out from then on, with a warning: what
counts is in the run folder.
"""

import hashlib
import logging
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zotune.errors import InputError, first_line
from zotune.run.metrics import EvalEvent, StepEvent
from zotune.run.samples import read_samples
from zotune.run.trackers import NONE, TRACKERS, Reported, Tracker
from zotune.run.trainer import Callback, MeZOTrainer

logger = logging.getLogger("zotune")
MOST_SAMPLES = 16  # of an evaluation


class Reporter(Callback):
    """Tells one tracker of a run.

    Args:
        name: a key of TRACKERS.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._tracker: Tracker | None = None

    def on_train_begin(self, trainer: MeZOTrainer) -> None:
        """Raises:
        InputError: the tracker cannot be started, as where nobody is logged in.
        """
        folder = trainer.folder
        self._samples = folder.samples
        try:
            self._tracker = TRACKERS[self.name](_reported(folder.path, folder.config, folder.journal, trainer.step))
        except Exception as error:  # the packages raise of every kind
            raise InputError(
                f"--report-to {self.name}: could not be started ({first_line(error)}); the run is in {folder.path}, "
                "and goes on with `zotune resume` once this is mended"
            ) from error

    def on_step_end(self, event: StepEvent) -> None:
        values = {
            "train/loss": event.loss, "train/learning_rate": event.learning_rate,
            "train/tokens_per_second": event.tokens_computed / event.step_time_s,
        }  # fmt: skip
        if event.slopes:
            values["train/slope_size"] = sum(map(abs, event.slopes)) / len(event.slopes)
        values |= {f"train/{name}": value for name, value in event.measured.items()}
        self._told(lambda tracker: tracker.log(values, event.step))

    def on_evaluate(self, event: EvalEvent) -> None:
        found = {"loss": event.loss, "accuracy": event.accuracy, "macro_f1": event.macro_f1, **event.measured}
        values = {f"eval/{name}": value for name, value in found.items() if value is not None}
        self._told(lambda tracker: tracker.log(values, event.step))
        written = [line for line in read_samples(self._samples) if line["step"] == event.step]
        if written:
            text = _table(written[:MOST_SAMPLES])
            self._told(lambda tracker: tracker.log_text("samples", text, event.step))

    def close(self) -> None:
        self._told(lambda tracker: tracker.close())
        self._tracker = None

    def _told(self, tell: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            tell(self._tracker)
        except Exception as error:
            self._tracker = None
            logger.warning("--report-to %s: %s; nothing more is reported to it", self.name, first_line(error))


def reporters(names: Sequence[str]) -> list[Reporter]:
    return [Reporter(name) for name in dict.fromkeys(names) if name != NONE]


def _reported(path: Path, config: Path, journal: Path, step: int) -> Reported:
    with journal.open("rb") as file:
        begun = file.readline()  # the run's own start; with its folder, so that a run made again is another
    key = hashlib.sha256(begun + str(path.resolve()).encode()).hexdigest()[:16]
    settings = tomllib.loads(config.read_text(encoding="utf-8"))
    return Reported(path, settings.get("run_name") or path.name, key, settings, step)


def _table(samples: Sequence[dict[str, Any]]) -> str:
    """Texts with their rewards, in Markdown."""
    rows = ["| reward | prompt | completion |", "|---|---|---|"]
    for sample in samples:
        prompt = sample["prompt"] if isinstance(sample["prompt"], str) else sample["prompt"][-1]["content"]
        reward = "" if sample["reward"] is None else f"{sample['reward']:.4g}"
        rows.append(f"| {reward} | {_cell(prompt)} | {_cell(sample['completion'])} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")
