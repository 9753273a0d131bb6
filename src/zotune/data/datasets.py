"""Records from data files, hub data sets and Python objects, each with the place it came from.

JSON lines, JSON, CSV (all also .gz), parquet, a folder or hub id of HuggingFace datasets, a `datasets.Dataset`, or a
list of dicts. A bad record is refused with its file, line and field.
"""

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zotune.data.tasks import ALIASES, HubSource, Task
from zotune.errors import InputError
from zotune.noise import permutation

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Record:
    """One record as read: its fields, and where it stands, e.g. `train.jsonl:7`."""

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
    kind = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    try:
        if kind == ".parquet":
            return _from_parquet(path, option)
        readers = {".jsonl": _from_json_lines, ".json": _from_json, ".csv": _from_csv}
        if kind not in readers:
            raise InputError(
                f"{option}: {source} ends in {kind or 'nothing'}; expected one of {', '.join(SUFFIXES)} (or .gz)"
            )
        return list(readers[kind](path.name, _read_text(path)))
    except (OSError, EOFError, UnicodeDecodeError) as error:
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


def _from_parquet(path: Path, option: str) -> list[Record]:
    import pyarrow.lib
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.lib.ArrowException as error:
        raise InputError(f"{option}: {path} is not parquet: {error}") from error
    return [Record(row, f"{path.name}[{index}]") for index, row in enumerate(rows)]


def _from_folder(path: Path, option: str, split: str) -> list[Record]:
    import datasets

    saved = (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file()
    if not saved:
        return _from_hub(str(path), option, split, None)
    loaded = datasets.load_from_disk(str(path))
    if isinstance(loaded, datasets.DatasetDict):
        loaded = _pick_split(loaded, str(path), option, split)
    return [Record(row, f"{path.name}[{index}]") for index, row in enumerate(loaded)]


def _from_hub(source: str, option: str, split: str, revision: str | None) -> list[Record]:
    import datasets

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(source, revision=revision)
    except (
        Exception
    ) as error:  # the library raises many kinds, also its dependencies' own, for a wrong or unreachable name
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{option}: data set {source!r} could not be loaded: {reason}") from error
    return [Record(row, f"{source}[{index}]") for index, row in enumerate(_pick_split(loaded, source, option, split))]


def _pick_split(splits: Mapping[str, Any], source: str, option: str, split: str) -> Any:
    if split not in splits:
        raise InputError(f"{option}: {source} has no split {split!r} (it has {', '.join(splits)})")
    return splits[split]


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
    field = _find(record, task.label_field, {task.label_field: names["label"]} if "label" in names else {})
    value = record.fields[field]
    for known in (task.label_names, task.label_words):
        if value in known:
            return known.index(value)
    try:
        label = int(value)
        if label != float(value):
            raise ValueError
    except (TypeError, ValueError):
        raise InputError(
            f"{record.where}: label {value!r} is not among the labels {', '.join(task.label_names)} "
            "(--labels name=word ...)"
        ) from None
    if not 0 <= label < len(task.labels):
        raise InputError(
            f"{record.where}: label {label} is outside 0..{len(task.labels) - 1}, the ids of the labels "
            f"{', '.join(task.label_names)} (--labels)"
        )
    return label
