"""Records in the words of their task: a prompt, and the id of a label or a completion. No tokens yet.

A field of the task is looked for by the name that the user gives, else its own, else those that data sets use. Besides,
any record may have a weight, where the user gives the name of that.
"""

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zotune.data.class_names import ClassName
from zotune.data.messages import Message, read_messages, read_pair, read_turns, template_arguments
from zotune.data.records import Record
from zotune.data.tasks import ALIASES, MASK, Task
from zotune.errors import InputError
from zotune.values import is_torn

WEIGHT = "weight"
"""What --fields calls the field with the number that the loss of a record is multiplied by; it has no other name."""


@dataclass(frozen=True)
class TextExample:
    """A record in the words of its task: the prompt's text, and a label id or the completion's text.

    `columns` are the record's own fields, and `where` is the place that it came from. `choices` are the options that
    the record brings; where several are right, `label` is the first and `also_right` has the others. `messages` are
    those of a chat and `replies` its answers, one to learn or two to compare; both are written when the tokenizer is
    known (`chat.in_words`), by a template that is given `template_arguments`.
    """

    prompt: str
    label: int | None
    completion: str
    where: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    also_right: tuple[int, ...] = ()
    messages: tuple[Message, ...] = ()
    replies: tuple[Message, ...] = ()
    template_arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def said(self) -> Any:
        """The prompt, as a text or as messages."""
        return self.messages or self.prompt


def expand(records: Sequence[Record], task: Task, names: Mapping[str, str]) -> list[Record]:
    """The records that the task's template speaks of; `names` as for `to_texts`.

    Raises:
        InputError: a record of another shape, with its place.
    """
    if task.rows is None:
        return list(records)
    made: list[Record] = []
    for record in records:
        renamed = {role: record.fields[name] for role, name in names.items() if name in record.fields}
        fields = {name: value for name, value in record.fields.items() if name not in names.values()} | renamed
        try:
            made.extend(Record(row, record.where) for row in task.rows(fields))
        except KeyError as error:
            raise InputError(f"{record.where}: an object in it has no field {error}") from error
        except (ValueError, TypeError) as error:
            raise InputError(f"{record.where}: {error}") from error
    if not made:
        raise InputError(f"{records[0].where}: no record has anything that task {task.name} could use")
    return made


def to_texts(
    records: Sequence[Record], task: Task, names: Mapping[str, str], need_labels: bool = True
) -> list[TextExample]:
    """Records in the words of `task`; `names` maps a task's field to the data's where they differ. A chat from which
    answers are learnt becomes one example for each.

    Raises:
        InputError: a field is missing, empty or of the wrong type, or a label is not among the task's.
    """
    roles = (*task.fields, *task.choice_fields, *(("label", task.label_field) if task.classifies else ()))
    roles += (WEIGHT,) if task.rows is None else ()  # else a record becomes others, without it
    for role in names:
        if role not in roles:
            raise InputError(
                f"--fields {role}={names[role]}: task {task.name} has no field {role!r}; "
                f"it has {', '.join(dict.fromkeys(roles))}"
            )
    if task.rows is not None:  # whose records have the task's own names
        names = {}
    if WEIGHT in names and need_labels:
        for record in records:
            _check_weight(record, names)
    if task.is_chat:
        return [text for record in records for text in _to_chats(record, task, names, need_labels)]
    return [_to_text(record, task, names, need_labels) for record in records]


def labels_of(records: Sequence[Record], task: Task, names: Mapping[str, str]) -> list[int]:
    """The label id of each record of a task with label words; `names` as for `to_texts`.

    Raises:
        InputError: a record has no label, or one that is not among the task's.
    """
    return [_label(record, task, {} if task.rows is not None else names) for record in records]


def _check_weight(record: Record, names: Mapping[str, str]) -> None:
    field = _find(record, WEIGHT, names)
    value = record.fields[field]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(
            f"{record.where}: field {field!r} should be a number, the weight of the record, got {reprlib.repr(value)}"
        )


def _to_text(record: Record, task: Task, names: Mapping[str, str], need_labels: bool) -> TextExample:
    values = prompt_values(record, task, names)
    shorter = not all(values[name] for name in task.optional_fields)
    prompt = (task.shorter if shorter else task.template).format_map(values | {MASK: MASK})
    if task.choice_fields:
        choices, called = _choices(record, task, names)
        right = _right_choices(record, task, names, choices, called) if need_labels else ()
        first = right[0] if right else None
        return TextExample(prompt, first, "", record.where, record.fields, choices, right[1:])
    if not task.labels:
        completion = {name: _text_field(record, name, names) for name in task.completion_fields} if need_labels else {}
        text = task.completion.format_map(completion) if need_labels else ""
        return TextExample(prompt, None, text, record.where, record.fields)
    label = _label(record, task, names) if need_labels else None
    return TextExample(prompt, label, "", record.where, record.fields)


def _to_chats(record: Record, task: Task, names: Mapping[str, str], need_labels: bool) -> list[TextExample]:
    arguments = template_arguments(record)
    if task.choice_fields:
        renamed = Record(
            {**record.fields, **{name: record.fields[_find(record, name, names)] for name in task.choice_fields}},
            record.where,
        )
        before, replies = read_pair(renamed, find_field(record, "messages", names))
        return [TextExample("", 0, "", record.where, record.fields, (), (), before, replies, arguments)]
    field = _find(record, "messages", names)
    if not (task.completion and need_labels):
        before, columns = read_messages(record, field)
        return [TextExample("", None, "", record.where, columns, messages=before, template_arguments=arguments)]
    return [
        TextExample("", None, "", record.where, record.fields, (), (), before, (reply,), arguments)
        for before, reply in read_turns(record, field, _completion_field(record, names))
    ]


def _completion_field(record: Record, names: Mapping[str, str]) -> str | None:
    """The field with the messages that follow a prompt of messages, which other names do not stand for."""
    name = names.get("completion", "completion")
    return name if name in record.fields else None


def prompt_values(record: Record, task: Task, names: Mapping[str, str]) -> dict[str, str]:
    """The texts of a prompt's fields. Where there are several, some may be empty."""
    optional, several = task.optional_fields, len(task.prompt_fields) > 1
    values = {
        name: ""
        if name in optional and find_field(record, name, names) is None
        else _stripped(_text_field(record, name, names, may_be_empty=several), name)
        for name in task.prompt_fields
    }
    needed = [name for name in values if name not in optional]
    if needed and not any(values[name] for name in needed):
        raise InputError(f"{record.where}: {' and '.join(f'field {name!r}' for name in needed)} is empty")
    return values


def _stripped(text: str, role: str) -> str:
    """A text without the spaces around it, which a template or an invocation puts where it needs them."""
    return text if role == "prompt" else text.strip()


def find_field(record: Record, role: str, names: Mapping[str, str]) -> str | None:
    """The record's own name of a task's field; None: it has no such field."""
    if role in names:
        return names[role] if names[role] in record.fields else None
    return next((alias for alias in dict.fromkeys((role, *ALIASES.get(role, ()))) if alias in record.fields), None)


def used_fields(record: Record, task: Task, names: Mapping[str, str]) -> set[str]:
    """The record's fields that its texts and its label are made of."""
    if task.rows is not None:
        names = {}
    roles = (*task.fields, *task.choice_fields, *([task.answers_field] if task.answers_field else ()))
    found = {find_field(record, role, names) for role in roles} | {names.get(WEIGHT)}
    if task.is_chat:
        found = {find_field(record, role, names) for role in ("messages", *task.choice_fields)}
        found |= {_completion_field(record, names), "tools", "chat_template_kwargs"}
        return {name for name in found if name is not None}
    if task.classifies:
        found.add(find_field(record, task.label_field, _label_name(task, names)))
    return {name for name in found if name is not None}


def _label_name(task: Task, names: Mapping[str, str]) -> dict[str, str]:
    """What the data calls the label, where --fields says it: as the task does, or as `label`."""
    renamed = names.get(task.label_field, names.get("label"))
    return {task.label_field: renamed} if renamed else {}


def _find(record: Record, role: str, names: Mapping[str, str]) -> str:
    found = find_field(record, role, names)
    if found is not None:
        return found
    if role in names:
        raise InputError(
            f"{record.where}: no field {names[role]!r} (--fields {role}={names[role]}); "
            f"it has {', '.join(map(str, record.fields))}"
        )
    raise InputError(
        f"{record.where}: no field {role!r}; it has {', '.join(map(str, record.fields)) or 'no fields'}. "
        f"Name it with --fields {role}=NAME"
    )


def _text_field(record: Record, role: str, names: Mapping[str, str], may_be_empty: bool = False) -> str:
    field = _find(record, role, names)
    value = record.fields[field]
    if may_be_empty and value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"{record.where}: field {field!r} should be text, got {type(value).__name__}")
    if is_torn(value):
        raise InputError(f"{record.where}: field {field!r} has half a character in it (a lone surrogate)")
    if not value.strip():
        if may_be_empty:
            return ""
        raise InputError(f"{record.where}: field {field!r} is empty")
    return value


def _choices(record: Record, task: Task, names: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The options of a record, and what its label may call them, such as A, B, C in the data of ARC."""
    fields = [_find(record, role, names) for role in task.choice_fields]
    values: Any = [record.fields[field] for field in fields]
    called: Sequence[Any] = fields
    if len(fields) == 1:
        (values,), called = values, ()
        if isinstance(values, Mapping):
            values, called = values.get("text"), values.get("label") or ()
    what = f"field{'s' if len(fields) > 1 else ''} {', '.join(map(repr, fields))}"
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise InputError(f"{record.where}: {what} should be a list of texts, got {reprlib.repr(values)}")
    if len(values) < 2 or not all(value.strip() for value in values):
        raise InputError(
            f"{record.where}: {what} should have two options or more, none empty, got {reprlib.repr(values)}"
        )
    if any(map(is_torn, values)):
        raise InputError(f"{record.where}: {what} has half a character in it (a lone surrogate)")
    return tuple(value.strip() for value in values), tuple(map(str, called))


def _right_choices(
    record: Record, task: Task, names: Mapping[str, str], choices: tuple[str, ...], called: tuple[str, ...]
) -> tuple[int, ...]:
    """The indices of the right options, which a label has by name, by text or by number; or by a list of these."""
    field = _find(record, task.label_field, _label_name(task, names))
    values = record.fields[field]
    found = []
    for value in values if isinstance(values, list) else [values]:
        number = _whole_number(value)
        if isinstance(value, str) and value in called:
            found.append(called.index(value))
        elif isinstance(value, str) and value.strip() in choices:
            found.append(choices.index(value.strip()))
        elif number is not None and 0 <= number < len(choices):
            found.append(number)
        else:
            raise InputError(
                f"{record.where}: label {reprlib.repr(value)} in field {field!r} is none of the options "
                f"{', '.join(called or choices)}, nor a number in 0..{len(choices) - 1}"
            )
    if not found:
        raise InputError(f"{record.where}: field {field!r} has no label")
    return tuple(dict.fromkeys(found))


def _label(record: Record, task: Task, names: Mapping[str, str]) -> int:
    field = _find(record, task.label_field, _label_name(task, names))
    value = record.fields[field]
    if isinstance(value, ClassName):
        return _label_of_class(value, task, record.where)
    label, shown = _whole_number(value), reprlib.repr
    if isinstance(value, str | int | float):
        # Names come before ids: with --labels 2=great 1=terrible a 1 is terrible, whether the data quotes it or not.
        known = task.label_names + (task.label_words if label is None else ())
        spellings = (str(value), str(value).lower()) if isinstance(value, bool) else (str(value),)
        for text in (*spellings, str(value if label is None else label)):
            if text in known:
                return known.index(text) % len(task.labels)
    if label is None or any(_whole_number(name) is not None for name in task.label_names):
        raise InputError(
            f"{record.where}: label {shown(value)} is not among the labels {', '.join(task.label_names)} "
            f"(--labels {value if isinstance(value, str) and value.isidentifier() else 'name'}=word ...)"
        )
    if not 0 <= label < len(task.labels):
        raise InputError(
            f"{record.where}: label {shown(label)} is outside 0..{len(task.labels) - 1}, the ids of the labels "
            f"{', '.join(task.label_names)} (--labels)"
        )
    beside = record.fields.get(f"{field}_text")  # the name of the label, as SetFit's data sets have it
    if isinstance(beside, str) and beside in task.label_names and task.label_names.index(beside) != label:
        raise InputError(
            f"{record.where}: label {label} has the name {beside!r} in {field}_text, which is not label {label} of "
            f"--labels; take the names: --fields label={field}_text"
        )
    return label


def _label_of_class(value: ClassName, task: Task, where: str) -> int:
    """The label of a class that the data know by name, whatever its number."""
    if value in task.label_names:
        return task.label_names.index(value)
    if value in task.label_words and not set(task.label_names) & set(value.names):
        return task.label_words.index(value)
    pairs = " ".join(f"{name}=WORD" for name in value.names)
    raise InputError(
        f"{where}: the data names its labels {', '.join(value.names)}, and --labels has {', '.join(task.label_names)}; "
        f"say which word belongs to which: --labels {pairs}"
    )


def _whole_number(value: Any) -> int | None:
    """A label id, however the file's format keeps numbers: 1, 1.0, True, "1" or "1.0"."""
    try:
        number = float(value)
        return int(number) if number == int(number) else None
    except (TypeError, ValueError, OverflowError):
        return None
