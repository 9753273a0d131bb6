"""Records from data files, hub data sets and Python objects, each with the place it came from.

JSON lines, JSON, CSV (all also .gz), parquet, a folder or hub id of HuggingFace datasets, a `datasets.Dataset`, or a
list of dicts. A bad record is refused with its file, line and field.
"""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zotune.data.tasks import ALIASES, HubSource, Task
from zotune.errors import InputError
from zotune.zo.noise import permutation

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
EVALUATION_SPLITS = ("test", "validation", "valid", "dev")  # names of what is not for training, in order of preference


@dataclass(frozen=True)
class Record:
    """One record as read: its fields, and where it stands, e.g. `data/train.jsonl:7`."""

    fields: Mapping[str, Any]
    where: str


@dataclass(frozen=True)
class TextExample:
    """A record in the words of its task: the prompt's text, and a label id or the completion's text."""

    prompt: str
    label: int | None
    completion: str
    where: str


def load_records(source: Any, option: str, split: str = "train") -> list[Record]:
    """All records of `source`; `option` is its name in messages.

    Raises:
        InputError: nothing there, an unknown format, a record that is not an object; with file and line.
    """
    if isinstance(source, str | Path):
        records = _from_path(str(source), option, split)
    elif isinstance(source, HubSource):
        records = _from_hub(source.path, option, split, source.revision)
    elif isinstance(source, Mapping):  # such as a DatasetDict
        raise InputError(
            f"{option}: expected one data set, got a {type(source).__name__} of {', '.join(map(str, source))}; "
            "pick one of them"
        )
    elif isinstance(source, Iterable):
        records = [_record(value, f"{option}[{index}]") for index, value in enumerate(source)]
    else:
        raise InputError(
            f"{option}: expected a path, a list of dicts or a datasets.Dataset, got {type(source).__name__}"
        )
    if not records:
        raise InputError(f"{option}: {_name(source)} holds no records")
    return records


def to_texts(
    records: Sequence[Record], task: Task, names: Mapping[str, str], need_labels: bool = True
) -> list[TextExample]:
    """Records in the words of `task`; `names` maps a task's field to the data's where they differ.

    Raises:
        InputError: a field is missing, empty or of the wrong type, or a label is not among the task's.
    """
    roles = (*task.fields, *(("label", task.label_field) if task.labels else ()))
    for role in names:
        if role not in roles:
            raise InputError(
                f"--fields {role}={names[role]}: task {task.name} has no field {role!r}; "
                f"it has {', '.join(dict.fromkeys(roles))}"
            )
    return [_to_text(record, task, names, need_labels) for record in records]


def sample_records(records: list[Record], limit: int | None, seed: int, name: str) -> list[Record]:
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


def _from_path(source: str, option: str, split: str) -> list[Record]:
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_folder(path, option, split)
    if not path.is_file():
        looks_local = path.suffix in (*SUFFIXES, ".gz") or source.startswith((".", "/", "~")) or source.count("/") > 1
        if looks_local:
            raise InputError(f"{option}: there is no file {source}")
        return _from_hub(source, option, split, None)
    kind = (path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix).lower()
    try:
        if kind == ".parquet":
            return _from_parquet(source, option)
        readers = {".jsonl": _from_json_lines, ".json": _from_json, ".csv": _from_csv}
        if kind not in readers:
            raise InputError(
                f"{option}: {source} ends in {kind or 'nothing'}; expected one of {', '.join(SUFFIXES)} (or .gz)"
            )
        return list(readers[kind](source, _read_text(path)))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{option}: cannot read {source}: {error}") from error


def _read_text(path: Path) -> str:
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return raw.decode("utf-8-sig")


def _from_json_lines(name: str, text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{name}:{number}: not JSON: {error.msg} at column {error.colno}") from error
            yield _record(value, f"{name}:{number}")


def _from_json(name: str, text: str) -> Iterator[Record]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; one object a line is JSON lines, name it .jsonl" if error.msg == "Extra data" else ""
        raise InputError(f"{name}:{error.lineno}: not JSON: {error.msg} at column {error.colno}{hint}") from error
    if not isinstance(values, list):
        raise InputError(f"{name}: expected a list of objects, got {type(values).__name__}")
    for index, value in enumerate(values):
        yield _record(value, f"{name}[{index}]")


def _from_csv(name: str, text: str) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)  # a text may well be longer than the 128 KiB that csv allows
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise InputError(
                    f"{name}:{reader.line_num}: expected {len(reader.fieldnames or ())} columns as in the first line"
                )
            yield Record(row, f"{name}:{reader.line_num}")
    except csv.Error as error:
        raise InputError(f"{name}:{reader.line_num}: not CSV: {error}") from error


def _from_parquet(source: str, option: str) -> list[Record]:
    import pyarrow.lib
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(source).to_pylist()
    except pyarrow.lib.ArrowException as error:
        raise InputError(f"{option}: {source} is not parquet: {error}") from error
    return [Record(row, f"{source}[{index}]") for index, row in enumerate(rows)]


def _from_folder(path: Path, option: str, split: str) -> list[Record]:
    import datasets

    if not ((path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file()):
        return _from_hub(str(path), option, split, None)
    with _explained(str(path), option):
        loaded = datasets.load_from_disk(str(path))
    return _rows(loaded, str(path), option, split)


def _from_hub(source: str, option: str, split: str, revision: str | None) -> list[Record]:
    import datasets

    datasets.disable_progress_bars()
    with _explained(source, option):
        loaded = datasets.load_dataset(source, revision=revision)
    return _rows(loaded, source, option, split)


def _rows(loaded: Any, source: str, option: str, split: str) -> list[Record]:
    """The records of a data set, or of its `split`; of the only one, where it has just one."""
    if isinstance(loaded, Mapping):
        wanted = (split, *EVALUATION_SPLITS) if split in EVALUATION_SPLITS else (split,)
        found = [name for name in wanted if name in loaded] or (list(loaded) if len(loaded) == 1 else [])
        if not found:
            raise InputError(
                f"{option}: {source} has no split {split!r} (it has {', '.join(loaded)}); "
                "save the one you mean as a file, and name that"
            )
        loaded = loaded[found[0]]
    return [Record(row, f"{source}[{index}]") for index, row in enumerate(loaded)]


@contextmanager
def _explained(source: str, option: str) -> Iterator[None]:
    """Turns what the library raises for a wrong, damaged or unreachable data set into one sentence."""
    try:
        yield
    except Exception as error:  # it raises many kinds, also its dependencies' own
        reason = str(error.__cause__ or error).strip() or type(error).__name__
        where = "" if Path(source).exists() else "no such file or folder, and as a data set of the hub: "
        raise InputError(f"{option}: {source!r} could not be loaded: {where}{reason.splitlines()[0]}") from error


def _record(value: Any, where: str) -> Record:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: expected an object with fields, got {type(value).__name__}")
    return Record(value, where)


def _name(source: Any) -> str:
    return source.path if isinstance(source, HubSource) else str(source) if isinstance(source, str | Path) else "it"


def _to_text(record: Record, task: Task, names: Mapping[str, str], need_labels: bool) -> TextExample:
    values = {name: _text_field(record, name, names) for name in task.fields if need_labels or name != "completion"}
    prompt = task.template.format_map(values)
    if not task.labels:
        return TextExample(prompt, None, task.completion.format_map(values) if need_labels else "", record.where)
    label = _label(record, task, names) if need_labels else None
    return TextExample(prompt, label, "", record.where)


def _find(record: Record, role: str, names: Mapping[str, str]) -> str:
    if role in names:
        if names[role] not in record.fields:
            raise InputError(
                f"{record.where}: no field {names[role]!r} (--fields {role}={names[role]}); "
                f"it has {', '.join(record.fields)}"
            )
        return names[role]
    for alias in dict.fromkeys((role, *ALIASES.get(role, ()))):
        if alias in record.fields:
            return alias
    raise InputError(
        f"{record.where}: no field {role!r}; it has {', '.join(map(str, record.fields)) or 'no fields'}. "
        f"Name it with --fields {role}=NAME"
    )


def _text_field(record: Record, role: str, names: Mapping[str, str]) -> str:
    field = _find(record, role, names)
    value = record.fields[field]
    if not isinstance(value, str):
        raise InputError(f"{record.where}: field {field!r} should be text, got {type(value).__name__}")
    if not value.strip():
        raise InputError(f"{record.where}: field {field!r} is empty")
    return value if role in ("prompt", "completion") else value.strip()


def _label(record: Record, task: Task, names: Mapping[str, str]) -> int:
    renamed = names.get(task.label_field, names.get("label"))
    field = _find(record, task.label_field, {task.label_field: renamed} if renamed else {})
    value = record.fields[field]
    label = _whole_number(value)
    if isinstance(value, str | int | float):
        # Names come before ids: with --labels 2=great 1=terrible a 1 is terrible, whether the data quotes it or not.
        known = task.label_names + (task.label_words if label is None else ())
        for text in (str(value), str(value if label is None else label)):
            if text in known:
                return known.index(text) % len(task.labels)
    if label is None or any(_whole_number(name) is not None for name in task.label_names):
        raise InputError(
            f"{record.where}: label {value!r} is not among the labels {', '.join(task.label_names)} "
            "(--labels name=word ...)"
        )
    if not 0 <= label < len(task.labels):
        raise InputError(
            f"{record.where}: label {label} is outside 0..{len(task.labels) - 1}, the ids of the labels "
            f"{', '.join(task.label_names)} (--labels)"
        )
    return label


def _whole_number(value: Any) -> int | None:
    """A label id, however the file's format keeps numbers: 1, 1.0, True, "1" or "1.0"."""
    try:
        number = float(value)
        return int(number) if number == int(number) else None
    except (TypeError, ValueError, OverflowError):
        return None
