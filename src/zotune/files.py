"""Files that are there whole or not at all, also after a crash or a power cut.

A file is written beside its place, brought to the disk, and renamed into it; then the folder is brought to the disk,
which holds the name. A file that grows does so by whole lines. Nothing here knows what the files hold.
"""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

Content = bytes | Callable[[Path], object]
"""What a file holds, or a function that writes the file at the path it is given, as libraries have them."""


def write_whole(path: Path, content: Content) -> None:
    """Write a file, in the place of one that is there. A link or what is no file, such as a pipe, is written to.

    Its permissions are those of any new file, whatever a library that writes it would choose.

    Raises:
        OSError: with the name of the file, which is as it was.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        with _naming(path):
            path.write_bytes(content) if isinstance(content, bytes) else content(path)
    else:
        write_together(path.parent, {path.name: content})


def write_together(folder: Path, contents: Mapping[str, Content]) -> None:
    """Write files of one folder, which is made where it is not there. None takes its place before all are on disk.

    Raises:
        OSError: with the name of a file.
    """
    make_folder(folder)
    fresh = {name: folder / f"{name}.new" for name in contents}
    try:
        for name, content in contents.items():
            with _naming(folder / name):
                _write(fresh[name], content)
        for name, new in fresh.items():
            with _naming(folder / name):
                new.replace(folder / name)
    finally:
        for new in fresh.values():
            new.unlink(missing_ok=True)
    sync_folder(folder)


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Put the folder that `write` fills, given its path, in the place of the one that is there.

    A folder cannot be renamed over another: for a moment there is none, while FOLDER.new and FOLDER.old are whole.

    Raises:
        OSError: with the name of the folder, which is as it was.
    """
    new, old = (folder.with_name(f"{folder.name}.{what}") for what in ("new", "old"))
    with _naming(folder):
        if old.exists() and not folder.exists():
            old.rename(folder)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        make_folder(new)
        try:
            fill_folder(new, write)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
            try:
                sync_folder(folder.parent)
            except OSError:
                folder.rename(new)
                raise
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)


def fill_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Have `write` put files into a folder, given its path; they are on disk when this returns, and as readable as new
    files are here, whatever a library made of them.

    Raises:
        OSError: with the name of the folder.
    """
    with _naming(folder):
        mode = _new_file(folder / ".mode")
        (folder / ".mode").unlink()
        write(folder)
        for path in folder.rglob("*"):
            if path.is_dir():
                sync_folder(path)
            else:
                path.chmod(mode)
                _sync(path)
        sync_folder(folder)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where they are not there; they are on disk when this returns."""
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        with suppress(FileExistsError):  # another process was first
            missing.mkdir()
        sync_folder(missing.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has no such thing
            raise


class LineFile:
    """A file that is there and grows by whole lines. A line that the disk refuses is taken back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("r+b", buffering=0)
        self._size = os.fstat(self.fileno()).st_size

    def fileno(self) -> int:
        return self._file.fileno()

    def read(self) -> bytes:
        """All that is in it."""
        self._file.seek(0)
        return self._file.readall()

    def append(self, line: bytes, *, durable: bool = True) -> None:
        """Write a line, with its end; it is on disk when this returns, or in the hands of the system.

        Raises:
            OSError: with the name of the file; what was written before stays whole.
        """
        with _naming(self.path):
            try:
                self._file.seek(self._size)
                written = self._file.write(line)
                while written < len(line):  # a disk that fills up takes a part and refuses the rest
                    written += self._file.write(line[written:])
                if durable:
                    os.fsync(self.fileno())
            except OSError:
                self._file.truncate(self._size)
                raise
        self._size += len(line)

    def cut(self, size: int) -> None:
        """Forget all but the first `size` bytes."""
        with _naming(self.path):
            self._file.truncate(size)
            os.fsync(self.fileno())
        self._size = size

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _write(path: Path, content: Content) -> None:
    """Write a file that is not to be read before it has another name, and bring it to the disk."""
    path.unlink(missing_ok=True)
    mode = _new_file(path)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    path.chmod(mode)
    _sync(path)


def _new_file(path: Path) -> int:
    """Make an empty file; the permissions that the system gives new ones here."""
    with path.open("xb") as file:
        return os.fstat(file.fileno()).st_mode & 0o777


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into an OSError that names the file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))  # libraries in Rust have an exception of their own
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
