"""The rows of a data file, each with its place: JSON lines, JSON, CSV (all also .gz) and parquet.

A row is whatever the file holds there. Whether it will do as a record is for the reader of records to say.
"""

import csv
import gzip
import io
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zotune.data.class_names import class_names_in_parquet, named
from zotune.data.json_text import parse_json
from zotune.errors import InputError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def read_file(source: str, option: str) -> Iterator[tuple[Any, str]]:
    """(row, place) pairs, such as ({"text": "good"}, "train.jsonl:7"); `option` is the file's name in messages.

    Raises:
        InputError: the file cannot be read, or is not what its suffix says.
    """
    path = Path(source).expanduser()
    kind = (path.suffixes[-2] if path.suffix.lower() == ".gz" and len(path.suffixes) > 1 else path.suffix).lower()
    try:
        if kind == ".parquet":
            yield from _from_parquet(source, option)
            return
        readers = {".jsonl": _from_json_lines, ".json": _from_json, ".csv": _from_csv}
        if kind not in readers:
            raise InputError(
                f"{option}: {source} ends in {kind or 'nothing'}; expected one of {', '.join(SUFFIXES)} (or .gz)"
            )
        yield from readers[kind](source, _decode(_read_bytes(path), source))
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{option}: cannot read {source}: {error}") from error


def read_lines(raw: bytes, name: str) -> Iterator[tuple[Any, str]]:
    """(row, place) pairs of lines that are a text each, or a JSON object."""
    for number, line in enumerate(_decode(raw, name).split("\n"), start=1):
        if line.strip():
            place = f"{name}:{number}"
            yield parse_json(line, place) if line.lstrip().startswith("{") else line.removesuffix("\r"), place


def _read_bytes(path: Path) -> bytes:
    raw = path.read_bytes()
    return gzip.decompress(raw) if path.suffix.lower() == ".gz" else raw


def _decode(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{name}:{line}: not UTF-8 (byte 0x{raw[error.start]:02x}); save it as UTF-8, or convert it with iconv"
        ) from error


def _from_json_lines(name: str, text: str) -> Iterator[tuple[Any, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield parse_json(line, f"{name}:{number}"), f"{name}:{number}"


def _from_json(name: str, text: str) -> Iterator[tuple[Any, str]]:
    values = parse_json(text, name, whole_file=True)
    if not isinstance(values, list):
        raise InputError(f"{name}: expected a list of objects, got {type(values).__name__}")
    for index, value in enumerate(values):
        yield value, f"{name}[{index}]"


def _from_csv(name: str, text: str) -> Iterator[tuple[Any, str]]:
    csv.field_size_limit(sys.maxsize)  # a text may well be longer than the 128 KiB that csv allows
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        _check_unique(reader.fieldnames or (), f"{name}:{reader.line_num}")
        for row in reader:
            if None in row or None in row.values():
                raise InputError(
                    f"{name}:{reader.line_num}: expected {len(reader.fieldnames or ())} columns as in the first line"
                )
            yield row, f"{name}:{reader.line_num}"
    except csv.Error as error:
        raise InputError(f"{name}:{reader.line_num}: not CSV: {error}") from error


def _from_parquet(source: str, option: str) -> Iterator[tuple[Any, str]]:
    import pyarrow.lib
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(source)
        _check_unique(schema.names, source)
        rows = pyarrow.parquet.read_table(source).to_pylist()
    except pyarrow.lib.ArrowException as error:
        raise InputError(f"{option}: {source} is not parquet: {error}") from error
    names = class_names_in_parquet(schema.metadata)
    yield from ((named(row, names), f"{source}[{index}]") for index, row in enumerate(rows))


def _check_unique(columns: Sequence[str], place: str) -> None:
    double = [name for name in dict.fromkeys(columns) if columns.count(name) > 1]
    if double:
        raise InputError(f"{place}: the column {double[0]!r} is there twice; rename one of them")
