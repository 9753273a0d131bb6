"""One process at a time in a run folder: locks that end with the process that holds them, however it ends.

A journal is locked while a run goes on. While a run begins, its folder is, by a file that is there for as long: there
is no journal yet, and an older one may be deleted. The folder itself could be locked on a local disk, but not on NFS,
where only a file that is open for writing can be.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from zotune.errors import InputError

LOCK_FILE = ".lock"


class OpenFile(Protocol):
    """A file of the system that is open."""

    def fileno(self) -> int: ...


def lock(file: OpenFile, path: Path) -> None:
    """Lock the file at `path`, which is open, for this process alone, until it is closed.

    Raises:
        InputError: another process has it, or had it until a moment ago and has deleted or replaced it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        ours = False
    except OSError as error:
        raise InputError(f"{path.parent}: this disk does not lock files ({error.strerror}); choose another") from error
    if not ours:
        raise InputError(f"{path.parent} is in use by another zotune process")


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder, which is there, for this process alone.

    Raises:
        InputError: another process has it.
    """
    path = folder / LOCK_FILE
    with path.open("ab") as file:
        lock(file, path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is locked: whoever opened it before finds that it is gone
