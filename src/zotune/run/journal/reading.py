"""A journal read back, every line of it checked: its checksum, its number, and that its seeds are the run's.

A last line that a crash cut short is dropped with a warning; any other damage is refused with the number of the line.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from zotune.errors import InputError
from zotune.run.journal.entries import Checkpointed, Entry
from zotune.run.journal.header import Header, looks_like_header
from zotune.run.journal.lines import decode
from zotune.zo.draws import derive_seed

logger = logging.getLogger("zotune")


@dataclass(frozen=True)
class Mark:
    """Of a line: where it ends, its checksum, and whether theta after it follows from it and theta before."""

    end: int
    checksum: int
    replayable: bool


@dataclass(frozen=True)
class Parsed:
    """What a journal holds; `marks` are those of all its whole lines, the first included."""

    header: Header
    entries: list[Entry]
    marks: list[Mark]


def read_journal(path: Path) -> tuple[Header, list[Entry]]:
    """Header and entries of a journal. A last line cut short is dropped with a warning.

    Raises:
        InputError: no journal there, or any other damage, with the number of the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path.parent} is not a run folder: cannot read {path.name} ({error.strerror})") from error
    parsed = parse(path, content)
    return parsed.header, parsed.entries


def begins_a_run(path: Path) -> bool:
    """Whether a file begins as the journals of zotune do, whatever may be wrong with the rest."""
    try:
        with path.open("rb") as file:
            value, _ = decode(file.readline().removesuffix(b"\n"))
    except (OSError, ValueError):
        return False
    return looks_like_header(value)


def parse(path: Path, content: bytes) -> Parsed:
    """The journal whose bytes these are; `path` is for messages, and for the file that the header names.

    Raises:
        InputError: damage, with the number of the line.
    """
    *lines, rest = content.split(b"\n")
    if rest:
        logger.warning("%s: line %d was cut short; dropped", path, len(lines) + 1)
    if not lines:
        raise InputError(f"{path}: line 1: the journal is empty")
    header, mark = _first(path, lines[0])
    entries, marks, seen = [], [mark], set[int]()
    for number, line in enumerate(lines[1:], start=2):
        try:
            value, checksum = decode(line, mark.checksum if header.is_chained else 0)
            entry = Entry.from_json(value, header.noise.at(header.seed, number - 2))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: line {number} is damaged: {error}") from error
        if entry.step != number - 1:
            raise InputError(f"{path}: line {number} is step {entry.step}, expected step {number - 1}")
        if foreign := _foreign_seeds(header, entry, seen):
            raise InputError(
                f"{path}: line {number} is of another run: the seed {foreign[0]} of a slope is none of this run's, "
                f"whose seed is {header.seed}"
            )
        mark = Mark(mark.end + len(line) + 1, checksum, not isinstance(entry.update, Checkpointed))
        entries.append(entry)
        marks.append(mark)
        seen.update(slope.seed for slope in entry.slopes)
    return Parsed(header, entries, marks)


def _first(path: Path, line: bytes) -> tuple[Header, Mark]:
    try:
        value, checksum = decode(line)
        return Header.from_json(value, path.parent), Mark(len(line) + 1, checksum, replayable=True)
    except InputError:  # of the file that the line names
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: line 1 is damaged: {error}") from error


def _foreign_seeds(header: Header, entry: Entry, seen: set[int]) -> list[int]:
    """Seeds that are neither those of this step's directions nor of an earlier step's, which Svrg repeats."""
    own = {derive_seed(header.seed, "direction", entry.step - 1, k) for k in range(len(entry.slopes))}
    return [slope.seed for slope in entry.slopes if slope.seed not in own and slope.seed not in seen]
