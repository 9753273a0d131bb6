"""Records, each with the place it came from: read from what the user names, sampled and split.

A source is a file (`files`), a folder or id of HuggingFace datasets (`hub`), a `datasets.Dataset`, a list of dicts, or
an open file, such as standard input.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from zotune.data.class_names import class_names, named
from zotune.data.files import SUFFIXES, read_file, read_lines
from zotune.data.hub import read_folder, read_hub
from zotune.data.tasks import HubSource
from zotune.errors import InputError
from zotune.zo.draws import permutation

T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """One record as read: its fields, and where it stands, e.g. `data/train.jsonl:7`."""

    fields: Mapping[str, Any]
    where: str


def load_records(source: Any, option: str, split: str = "train", text_field: str | None = None) -> list[Record]:
    """All records of `source`.

    Args:
        option: the name of the source in messages.
        text_field: the field of a record that is a text alone; None: there may be no such record.

    Raises:
        InputError: nothing there, an unknown format, a record that is not an object; with file and line.
    """
    if isinstance(source, str | Path):
        rows = _from_path(str(source), option, split)
    elif isinstance(source, HubSource):
        rows = read_hub(source.path, option, split, source.revision, source.subset)
    elif isinstance(source, Mapping):  # such as a DatasetDict
        raise InputError(
            f"{option}: expected one data set, got a {type(source).__name__} of {', '.join(map(str, source))}; "
            "pick one of them"
        )
    elif hasattr(source, "to_dict") and hasattr(source, "columns"):
        raise InputError(f'{option}: got a {type(source).__name__}; give its records, as df.to_dict("records")')
    elif hasattr(source, "read"):
        raw = source.read()
        rows = read_lines(raw if isinstance(raw, bytes) else raw.encode(errors="surrogatepass"), "standard input")
    elif isinstance(source, Iterable):
        rows = ((value, f"{option}[{index}]") for index, value in enumerate(_named_rows(source)))
    else:
        raise InputError(
            f"{option}: expected a path, a list of dicts or a datasets.Dataset, got {type(source).__name__}"
        )
    records = [_record(value, where, text_field) for value, where in rows]
    if not records:
        name = "standard input" if hasattr(source, "read") else _name(source)
        raise InputError(f"{option}: {name} holds no records")
    return records


def _named_rows(source: Iterable[Any]) -> Iterable[Any]:
    """Rows from Python; a `datasets.Dataset` may have names for its classes."""
    names = class_names(getattr(source, "features", None))
    return (named(row, names) for row in source)


def sample_records(records: list[T], limit: int | None, seed: int, name: str) -> list[T]:
    """At most `limit` records, drawn without replacement by `seed`, in the order of the data."""
    if limit is None or limit >= len(records):
        return records
    return [records[i] for i in sorted(permutation(seed, f"sample/{name}", len(records))[:limit])]


def split_records(records: list[Record], share: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(training, held-out) parts; `share` of the records is held out, drawn by `seed`."""
    held_out = set(permutation(seed, "split", len(records))[: max(1, round(share * len(records)))].tolist())
    return (
        [record for index, record in enumerate(records) if index not in held_out],
        [record for index, record in enumerate(records) if index in held_out],
    )


def _from_path(source: str, option: str, split: str) -> Iterator[tuple[Any, str]]:
    path = Path(source).expanduser()
    if path.is_dir():
        return read_folder(path, option, split)
    if path.is_file():
        return read_file(source, option)
    name, _, configuration = source.rpartition(":")
    if name and Path(name).expanduser().is_dir():
        return read_folder(Path(name).expanduser(), option, split, configuration)
    if path.suffix in (*SUFFIXES, ".gz") or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise InputError(f"{option}: there is no file {source}")
    return read_hub(name or source, option, split, configuration=configuration if name else None)


def _record(value: Any, where: str, text_field: str | None) -> Record:
    if isinstance(value, str) and text_field is not None:
        return Record({text_field: value}, where)
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: expected an object with fields, got {type(value).__name__}")
    return Record(value, where)


def _name(source: Any) -> str:
    return source.path if isinstance(source, HubSource) else str(source) if isinstance(source, str | Path) else "it"


def json_lines(name: str, rows: Iterable[Any]) -> bytes:
    """Records given from Python as a file of JSON lines; a value that JSON does not have, such as a date, as its text.

    Args:
        name: of the setting that stands for them.

    Raises:
        InputError: a record that is no object, or that holds itself.
    """
    lines = []
    for index, row in enumerate(_named_rows(rows)):
        try:
            lines.append(json.dumps(dict(row), default=_plain) + "\n")
        except (TypeError, ValueError, RecursionError) as error:
            place = f"--{name.replace('_', '-')}[{index}]"
            raise InputError(f"{place}: a record must be an object that JSON can hold: {error}") from error
    return "".join(lines).encode()


def _plain(value: Any) -> Any:
    """What stands for a value that JSON does not have: arrays and their numbers as lists and numbers, else its text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return dict(value) if isinstance(value, Mapping) else str(value)
