"""What the page shows of runs, read off their folders, also of runs that are being written at this moment.

A line that is not whole yet is left for the next look. Nothing is written or locked.
"""

import json
import math
import os
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zotune.run.folder import RunFolder
from zotune.run.samples import read_samples

DEEPEST = 4  # folders below the one that is named
MOST_POINTS = 500  # of a curve; of more, every second, third, ... is shown
STILL_S = 120  # after so long without a new line, a run that has not ended is called stopped
CURVES = ("loss", "learning_rate", "reward")


class Runs:
    """All runs below some folders, by the name that they have there."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._lines: dict[Path, tuple[int, list[dict[str, Any]]]] = {}  # up to which byte, and what is in them

    def found(self) -> dict[str, RunFolder]:
        """Those that are there now, the newest first."""
        runs = {}
        for folder in self._folders:
            for path in _run_folders(folder.resolve()):
                short = str(path.relative_to(folder.resolve()))
                name = path.name if short == "." else short
                runs[name if name not in runs else str(path)] = RunFolder(path)
        return dict(sorted(runs.items(), key=lambda item: -_changed(item[1])))

    def listed(self) -> list[dict[str, Any]]:
        """Each run with its settings, how far it is, and its last evaluation."""
        return [{"name": name, **self._described(run)} for name, run in self.found().items()]

    def curves(self, name: str) -> dict[str, Any] | None:
        """What was measured: training by step, and every evaluation; None: there is no such run."""
        run = self.found().get(name)
        if run is None:
            return None
        events = self._events(run)
        steps = [event | event.get("measured", {}) for event in events if event["event"] == "step"]
        every = max(1, len(steps) // MOST_POINTS)
        return {
            "steps": [{key: step[key] for key in ("step", *CURVES) if key in step} for step in steps[::every]],
            "evaluations": [event | event.get("measured", {}) for event in events if event["event"] == "eval"],
        }

    def samples(self, name: str) -> list[dict[str, Any]] | None:
        """What the model wrote at the last evaluation; None: there is no such run."""
        run = self.found().get(name)
        if run is None:
            return None
        lines = read_samples(run.samples)
        return [line for line in lines if line["step"] == lines[-1]["step"]]

    def _described(self, run: RunFolder) -> dict[str, Any]:
        events = self._events(run)
        steps = [event["step"] for event in events if event["event"] == "step"]
        evaluations = [event for event in events if event["event"] == "eval"]
        settings = _settings(run)
        step, num_steps = steps[-1] if steps else 0, settings.get("num_steps")
        is_done = run.summary.is_file() and run.summary.stat().st_mtime >= _changed(run)
        state = "finished" if is_done else "running" if time.time() - _changed(run) < STILL_S else "stopped"
        return {
            "settings": settings, "step": step, "num_steps": num_steps, "state": state,
            "last": evaluations[-1] if evaluations else None, "has_samples": run.samples.is_file(),
        }  # fmt: skip

    def _events(self, run: RunFolder) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; only what is new is read, unless the file has become shorter."""
        path = run.metrics
        size = path.stat().st_size if path.is_file() else 0
        read, events = self._lines.get(path, (0, []))
        if size < read:
            read, events = 0, []
        if size > read:
            with path.open("rb") as file:
                file.seek(read)
                new, end, _ = file.read(size - read).rpartition(b"\n")
            events = [*events, *filter(None, map(_event, new.splitlines()))]
            read += len(new) + len(end)
        self._lines[path] = read, events
        return events


def _run_folders(folder: Path) -> Iterator[Path]:
    """Folders that hold a run, from `folder` on down; nothing within a run is looked at."""
    for place, below, files in os.walk(folder):
        if "journal.jsonl" in files and "config.toml" in files:
            below.clear()
            yield Path(place)
        elif len(Path(place).relative_to(folder).parts) >= DEEPEST:
            below.clear()


def _changed(run: RunFolder) -> float:
    """When something was last measured, or the run began."""
    for path in (run.metrics, run.journal):
        if path.is_file():
            return path.stat().st_mtime
    return 0.0


def _event(line: bytes) -> dict[str, Any] | None:
    """A line, with what is no number left out, which a browser does not read; None: it is damaged."""
    try:
        value = json.loads(line, parse_constant=lambda _: None)
    except ValueError:
        return None
    return value if isinstance(value, dict) and {"event", "step"} <= value.keys() else None


def _settings(run: RunFolder) -> dict[str, Any]:
    """The settings of a run by name, those of tables as TABLE.NAME."""
    try:
        values = tomllib.loads(run.config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
    return {name: value for name, value in flat.items() if not (isinstance(value, float) and not math.isfinite(value))}
