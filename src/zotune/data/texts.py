"""Records in the words of their task: a prompt, and the id of a label or a completion. No tokens yet.

A field of the task is looked for by the name that the user gives, else its own, else those that data sets use.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zotune.data.records import Record
from zotune.data.tasks import ALIASES, Task
from zotune.errors import InputError


@dataclass(frozen=True)
class TextExample:
    """A record in the words of its task: the prompt's text, and a label id or the completion's text.

    `columns` are the record's own fields, and `where` is the place that it came from.
    """

    prompt: str
    label: int | None
    completion: str
    where: str
    columns: Mapping[str, Any] = field(default_factory=dict)


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


def _to_text(record: Record, task: Task, names: Mapping[str, str], need_labels: bool) -> TextExample:
    values = {name: _text_field(record, name, names) for name in task.fields if need_labels or name != "completion"}
    prompt = task.template.format_map(values)
    if not task.labels:
        return TextExample(
            prompt, None, task.completion.format_map(values) if need_labels else "", record.where, record.fields
        )
    label = _label(record, task, names) if need_labels else None
    return TextExample(prompt, label, "", record.where, record.fields)


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
