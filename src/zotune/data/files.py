"""The rows of a data file, each with its place: JSON lines, JSON, CSV (all also .gz) and parquet.

A row is whatever the file holds there. Whether it will do as a record is for the reader of records to say.
"""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zotune.errors import InputError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def read_file(source: str, option: str) -> Iterator[tuple[Any, str]]:
    """(row, place) pairs, such as ({"text": "good"}, "train.jsonl:7"); `option` is the file's name in messages.

    Raises:
        InputError: the file cannot be read, or is not what its suffix says.
    """
    path = Path(source).expanduser()
    kind = (path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix).lower()
    try:
        if kind == ".parquet":
            yield from _from_parquet(source, option)
            return
        readers = {".jsonl": _from_json_lines, ".json": _from_json, ".csv": _from_csv}
        if kind not in readers:
            raise InputError(
                f"{option}: {source} ends in {kind or 'nothing'}; expected one of {', '.join(SUFFIXES)} (or .gz)"
            )
        yield from readers[kind](source, _read_text(path))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{option}: cannot read {source}: {error}") from error


def _read_text(path: Path) -> str:
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return raw.decode("utf-8-sig")


def _from_json_lines(name: str, text: str) -> Iterator[tuple[Any, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{name}:{number}: not JSON: {error.msg} at column {error.colno}") from error
            yield value, f"{name}:{number}"


def _from_json(name: str, text: str) -> Iterator[tuple[Any, str]]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; one object a line is JSON lines, name it .jsonl" if error.msg == "Extra data" else ""
        raise InputError(f"{name}:{error.lineno}: not JSON: {error.msg} at column {error.colno}{hint}") from error
    if not isinstance(values, list):
        raise InputError(f"{name}: expected a list of objects, got {type(values).__name__}")
    for index, value in enumerate(values):
        yield value, f"{name}[{index}]"


def _from_csv(name: str, text: str) -> Iterator[tuple[Any, str]]:
    csv.field_size_limit(sys.maxsize)  # a text may well be longer than the 128 KiB that csv allows
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
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
        rows = pyarrow.parquet.read_table(source).to_pylist()
    except pyarrow.lib.ArrowException as error:
        raise InputError(f"{option}: {source} is not parquet: {error}") from error
    yield from ((row, f"{source}[{index}]") for index, row in enumerate(rows))
