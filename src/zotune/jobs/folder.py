"""A job's folder: what was asked for, what became of it, and an ordinary run folder in it, `run`."""

import contextlib
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import tomli_w

from zotune.files import write_whole
from zotune.jobs.request import JobRequest
from zotune.run.folder import RunFolder

Wanted = Literal["running", "paused", "cancelled"]


@dataclass(frozen=True)
class JobState:
    """What is kept of a job, in job.json.

    `wanted` is what its owner wants of it; `error` why it failed; `served` the step whose adapter is served; `process`
    the process that trains, and when that began, so that a server that starts again knows it from others.
    """

    name: str
    created: float
    wanted: Wanted = "running"
    error: str | None = None
    served: int | None = None
    process: tuple[int, float] | None = None
    stream: bool = False


@dataclass
class JobFolder:
    """The folder of one job; `state` is as on disk, whichever threads change it."""

    path: Path
    state: JobState
    _changing: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def create(cls, path: Path, request: JobRequest, fixed: Mapping[str, Any]) -> "JobFolder":
        """Write down what was asked for; job.json comes last, so that a folder with it is whole.

        Args:
            fixed: settings that are the server's.
        """
        path.mkdir(parents=True)
        settings = {**request.settings, **fixed, "output_dir": str(path.resolve() / "run")}
        for name, lines in request.records.items():
            file = path / f"{name}.jsonl"
            write_whole(file, lines)
            settings[name] = str(file.resolve())
        if request.stream:
            write_whole(path / "stream.jsonl", b"")
            settings["stream_data"] = str((path / "stream.jsonl").resolve())
        write_whole(path / "settings.toml", tomli_w.dumps(settings).encode())
        job = cls(path, JobState(request.name, time.time(), stream=request.stream))
        job.save()
        return job

    @classmethod
    def open(cls, path: Path) -> "JobFolder | None":
        """None where the server ended before the job was written down."""
        try:
            kept = json.loads((path / "job.json").read_text(encoding="utf-8"))
            process = kept.pop("process")
            return cls(path, JobState(**kept, process=tuple(process) if process else None))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def change(self, **changes: Any) -> None:
        with self._changing:
            self.state = replace(self.state, **changes)
            self.save()

    def save(self) -> None:
        write_whole(self.path / "job.json", (json.dumps(asdict(self.state), indent=2) + "\n").encode())

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.path / "run")

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def has_begun(self) -> bool:
        """Whether there is a run to go on with."""
        try:
            return b"\n" in self.run.journal.read_bytes()[:1_000_000]
        except OSError:
            return False

    @property
    def is_finished(self) -> bool:
        return self.run.summary.is_file()

    @property
    def records(self) -> Path:
        """Where records are appended that come in while the job runs."""
        return self.path / "stream.jsonl"


@dataclass
class Events:
    """The lines of a run's metrics.jsonl, as they come."""

    path: Path
    lines: list[dict[str, Any]] = field(default_factory=list)
    _read: int = 0

    def update(self) -> None:
        """Read what is new. A run that goes on rewrites the file, and forgets what came after its last step."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, 2) < self._read:
                    self.lines, self._read = [], 0
                file.seek(self._read)
                *whole, _ = file.read().split(b"\n")
        except OSError:
            return
        self._read += sum(len(line) + 1 for line in whole)
        for line in whole:
            with contextlib.suppress(ValueError):
                self.lines.append(json.loads(line))

    def last(self, event: str) -> dict[str, Any] | None:
        return next((line for line in reversed(self.lines) if line.get("event") == event), None)


def described(job: JobFolder, state: str, events: Events) -> dict[str, Any]:
    """A job as its owner sees it."""
    step, evaluations = events.last("step"), [line for line in events.lines if line.get("event") == "eval"]
    counters = ("tokens_computed", "tokens_reused")
    steps = [line for line in events.lines if line.get("event") == "step"]
    return {
        "name": job.state.name,
        "state": state,
        "step": step["step"] if step else 0,
        "loss": step["loss"] if step else None,
        "evaluations": [{name: line[name] for name in ("step", "accuracy", "loss")} for line in evaluations],
        **{name: sum(line[name] for line in steps) for name in counters},
        "seconds": sum(line["step_time_s"] for line in steps),
        "served_step": job.state.served,
        "error": job.state.error,
        "created": job.state.created,
        "run_folder": str(job.run.path),
    }
