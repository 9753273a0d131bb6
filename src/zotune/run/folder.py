"""A run folder: where everything about a run lies. What is not in the folder did not happen.

Only `claim` and `clear` make and empty one, and never another's: what is no run is left alone, whatever is asked for.
"""

import os
import re
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from zotune.errors import InputError
from zotune.files import make_folder, sync_folder
from zotune.run.journal.reading import begins_a_run
from zotune.run.locks import LOCK_FILE, lock, locked_folder

# What a run writes before its journal has a first line; it always begins with config.toml.
BEFORE_JOURNAL = {"config.toml", "train_data.jsonl", "eval_data.jsonl", "start.safetensors", "journal.jsonl"}


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run, and how a new one takes its place."""

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
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def best(self) -> Path:
        return self.path / "best"

    def kept(self, step: int) -> Path:
        """What was trained after a step, where the user wants it kept."""
        return self.path / f"checkpoint-{step}"

    def drop_kept(self, limit: int) -> None:
        """Delete all but the last `limit` of these."""
        names = [path.name for path in self.path.iterdir() if path.is_dir()]
        steps = sorted(int(found[1]) for name in names if (found := re.fullmatch(r"checkpoint-(\d+)", name)))
        for step in steps[:-limit]:
            shutil.rmtree(self.kept(step))

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @contextmanager
    def claim(self, overwrite: bool) -> Iterator[None]:
        """Hold the folder for a new run, made where it is not there, until the run's journal is open.

        Nobody else can begin, go on with or overwrite a run there meanwhile. Nothing in it is touched: `clear` is for
        when all that may be refused has been checked. A folder that nothing has come into is gone again at the end.

        Raises:
            InputError: the path is not ours to take, or another process has it.
        """
        self._check(overwrite)
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            with ExitStack() as held:
                with _refusing(self.path):
                    make_folder(self.path)
                    held.enter_context(locked_folder(self.path))
                self._check(overwrite)  # again, now that nobody else can change the answer
                if self.journal.exists():
                    journal = held.enter_context(self.journal.open("rb"))
                    lock(journal, self.journal)
                yield
        finally:
            for folder in made:
                with suppress(OSError):  # not empty
                    folder.rmdir()

    def clear(self) -> None:
        """Delete what a claimed folder holds: a run that is to be overwritten, or the beginnings of one.

        The run is gone at once, when its journal gets another name; until then it is whole. That file goes last: by it
        the next run knows that what is left after a crash may be deleted.
        """
        with _refusing(self.path):
            if self.journal.exists():
                self.journal.replace(self._deleted)
                sync_folder(self.path)
            for path in sorted(self.path.iterdir(), key=lambda path: path == self._deleted):
                if path.name == LOCK_FILE:
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            sync_folder(self.path)

    def check_free(self, overwrite: bool) -> None:
        """Refuse a folder that holds something, before any work is done.

        Raises:
            InputError: the path exists and is not ours to take.
        """
        self._check_place()
        if not self._contents():
            return
        if not self.journal.is_file():
            option = "--overwrite" if overwrite else "--output-dir"
            raise InputError(f"{option}: {self.path} holds files but no run (no journal.jsonl); choose another folder")
        if not begins_a_run(self.journal):
            raise InputError(
                f"--output-dir: {self.path} holds no run: its journal.jsonl is not one that zotune began; choose "
                "another folder"
            )
        if not overwrite:
            raise InputError(
                f"--output-dir: {self.path} exists; choose another, continue it with `zotune resume {self.path}`, "
                "or replace it with --overwrite"
            )

    def _check(self, overwrite: bool) -> None:
        self._check_place()
        if not self._is_unfinished() and not self._is_deleted():
            self.check_free(overwrite)

    def _check_place(self) -> None:
        with _refusing(self.path):
            if self.path.is_symlink():
                raise InputError(f"--output-dir: {self.path} is a link; name the folder that it leads to, or another")
            if os.path.ismount(self.path):
                raise InputError(f"--output-dir: {self.path} is where a disk is mounted; name a folder in it")
            if self.path.exists() and not self.path.is_dir():
                raise InputError(f"--output-dir: {self.path} is a file")
            parent = next(path for path in (self.path.absolute(), *self.path.absolute().parents) if path.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise InputError(f"--output-dir: cannot write {self.path}: {parent} is not a folder that can be written to")

    def _contents(self) -> set[str]:
        """Names in the folder, but for what a process that begins a run there may have left."""
        with _refusing(self.path):
            names = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        return names - {LOCK_FILE, f"{self.config.name}.new"}

    @property
    def _deleted(self) -> Path:
        """The journal of a run whose deletion has begun."""
        return self.path / "journal.jsonl.deleted"

    def _is_deleted(self) -> bool:
        """Whether it holds what is left of a run whose deletion was cut short."""
        return not self.journal.exists() and begins_a_run(self._deleted)

    def _is_unfinished(self) -> bool:
        """Whether it holds a run that was stopped before its journal had a first line."""
        if not {name.removesuffix(".new") for name in self._contents()} <= BEFORE_JOURNAL:
            return False
        if self.journal.exists() and b"\n" in self.journal.read_bytes():
            return False
        try:
            text = self.config.read_text(encoding="utf-8")
            return not text or {"model", "num_steps", "output_dir"} <= tomllib.loads(text).keys()
        except (OSError, ValueError):
            return False


def default_output_dir(task: str, model: str) -> Path:
    """output/TASK-MODEL-DATE-TIME, with the number of the process where another run began in the same second."""
    name = Path(model).name or "model"
    path = Path("output") / f"{task}-{name}-{datetime.now():%Y%m%d-%H%M%S}"
    return path.with_name(f"{path.name}-{os.getpid()}") if path.exists() else path


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn what the system refuses into words about --output-dir."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        name = str(path) if str(path).isprintable() else repr(str(path))
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"--output-dir: cannot write {name}: {reason}") from error
