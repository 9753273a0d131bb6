"""Plain values that a user gives, on a command line, in a file or from Python: texts, paths and numbers.

What is none of them is refused in words, whatever it is; the numbers of NumPy and the paths of pathlib are welcome.
"""

import numbers
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from zotune.errors import InputError

LONGEST_NAME = 255  # bytes, of a file or a folder on any usual disk
LONGEST_PATH = 4095


def shown(value: Any) -> str:
    """A value in one short line, for a message."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # such as whole numbers of 4,300 digits and more
        text = f"a {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


def text_of(value: Any, option: str) -> str:
    """A text, which files and tokenizers can take.

    Raises:
        InputError: no text, or one with half a character, which is what bytes become that are not UTF-8.
    """
    if not isinstance(value, str):
        raise InputError(f"{option}: expected text, got {shown(value)}")
    if re.search("[\ud800-\udfff]", value):
        raise InputError(f"{option}: {shown(value)} is not UTF-8: it has half a character (a lone surrogate)")
    return value


def path_of(value: Any, option: str) -> str:
    """A path that a file or folder can have, or the id of something on the hub.

    Raises:
        InputError: no path, an empty one, or one that no file can have.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise InputError(f"{option}: expected a path, got {shown(value)}")
    text_of(value, option)
    if not value:
        raise InputError(f"{option}: expected a path, got ''")
    if "\0" in value:
        raise InputError(f"{option}: {shown(value)} has a NUL character, which no path can have")
    longest = max((len(part.encode()) for part in value.split("/")), default=0)
    if longest > LONGEST_NAME or len(value.encode()) > LONGEST_PATH:
        count, most = (longest, LONGEST_NAME) if longest > LONGEST_NAME else (len(value.encode()), LONGEST_PATH)
        raise InputError(f"{option}: {shown(value)} is too long: {count} bytes, where {most} are allowed")
    try:
        Path(value).expanduser()
    except RuntimeError as error:
        raise InputError(f"{option}: {shown(value)}: there is no such user") from error
    return value


def folder_of(value: Any, option: str) -> Path:
    """A folder that can be written to, there or yet to be made. It is tried, and nothing of that is left.

    Raises:
        InputError: what stands in the way.
    """
    folder = Path(path_of(value, option))
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError) as error:
        there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        raise InputError(f"{option}: cannot write {folder}: {there} is no folder") from error
    except OSError as error:
        raise InputError(f"{option}: cannot write {folder}: {error.strerror}") from error
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()
    return folder


def file_of(value: Any, option: str) -> Path:
    """A file that can be written, there or yet to be made, in a folder that is there.

    Raises:
        InputError: what stands in the way.
    """
    path = Path(path_of(value, option))
    if not path.absolute().parent.is_dir():
        raise InputError(f"{option}: there is no folder {path.parent}")
    if path.is_dir():
        raise InputError(f"{option}: {path} is a folder")
    is_new = not os.path.lexists(path)
    try:
        if is_new or path.is_file():  # what is neither, such as a pipe, is left for the one who writes to it
            path.open("ab").close()
    except OSError as error:
        raise InputError(f"{option}: cannot write {path}: {error.strerror}") from error
    if is_new:
        path.unlink()
    return path


def is_flag(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not is_flag(value)


def is_number(value: Any) -> bool:
    """Also where it is too large for a float."""
    return isinstance(value, numbers.Real) and not is_flag(value)


def number_of(value: Any) -> float:
    """A number as a float, infinite where it is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else -float("inf")


def whole_of(value: Any, option: str, least: int, most: int) -> int:
    """A whole number within bounds.

    Raises:
        InputError: with what is allowed.
    """
    if not is_whole(value):
        raise InputError(f"{option}: expected a whole number, got {shown(value)}")
    if value < least:
        raise InputError(f"{option} must be {least:,} or more, got {shown(value)}")
    if value > most:
        raise InputError(f"{option} must be at most {most:,}, got {shown(value)}")
    return int(value)


def is_torn(text: str) -> bool:
    """Whether a text holds half a character, as JSON can write it and no tokenizer can read it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
