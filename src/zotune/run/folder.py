"""A run folder: where everything about a run lies. What is not in the folder did not happen."""

import os
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from zotune.errors import InputError


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run. `claim` makes a new one and never touches another run unless told to."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def journal(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    def check_free(self, overwrite: bool) -> None:
        """Refuse a folder that holds something, before any work is done.

        Raises:
            InputError: the path exists and is not ours to take.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--output-dir: {self.path} is a file")
        parent = next(path for path in (self.path.absolute(), *self.path.absolute().parents) if path.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise InputError(f"--output-dir: cannot write {self.path}: {parent} is not a folder that can be written to")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        if not self.journal.is_file():
            option = "--overwrite" if overwrite else "--output-dir"
            raise InputError(f"{option}: {self.path} holds files but no run (no journal.jsonl); choose another folder")
        if not overwrite:
            raise InputError(
                f"--output-dir: {self.path} exists; choose another, continue it with `zotune resume {self.path}`, "
                "or replace it with --overwrite"
            )

    def claim(self, overwrite: bool) -> None:
        """Make the folder, empty."""
        self.check_free(overwrite)
        try:
            if self.path.exists():
                shutil.rmtree(self.path)
            self.path.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"--output-dir: cannot write {self.path}: {error.strerror}") from error


def default_output_dir(task: str, model: str) -> Path:
    """output/TASK-MODEL-DATE-TIME, new every second."""
    name = Path(model).name or "model"
    return Path("output") / f"{task}-{name}-{datetime.now():%Y%m%d-%H%M%S}"
