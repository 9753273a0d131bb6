"""Fields of the data that no text is made of: refused where they are content that a model should read, else named.

Nobody asked for a passage to be left out where the prompt was made of the question alone, because that is the name that
zotune looks for. Where the user chose the prompt's fields (--template, --task or --fields), it is their choice.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from zotune.data.class_names import ClassName
from zotune.data.records import Record
from zotune.data.tasks import Task
from zotune.data.texts import find_field, used_fields
from zotune.errors import InputError

CONTENT = frozenset((
    "article", "background", "choices", "context", "dialogue", "document", "evidence", "history", "hypothesis", "input",
    "paragraph", "passage", "premise", "question", "question1", "question2", "sentence", "sentence1", "sentence2",
    "story", "system", "text1", "text2", "text_a", "text_b", "text_pair",
))  # fmt: skip
"""Names that data sets use for a text that belongs to the question, beside the one that is read."""


def unused_fields(records: Sequence[Record], task: Task, names: Mapping[str, str], chosen: bool) -> str | None:
    """A sentence about the fields with texts, or lists of them, that are not used; None: there are none.

    Args:
        names: what the data calls the task's fields, where it differs.
        chosen: the user said what the prompt is made of.

    Raises:
        InputError: the prompt was not chosen, and would leave out content.
    """
    found: dict[str, str] = {}
    used: dict[tuple[str, ...], set[str]] = {}
    for record in records:
        fields = tuple(record.fields)
        if fields not in used:
            used[fields] = used_fields(record, task, names)
        for name, value in record.fields.items():
            if name in used[fields] or name in found or not _is_content(value) or str(name).startswith("label"):
                continue
            column, _, number = str(name).rpartition(".")
            if column in used[fields] - set(names.values()) and number.isdigit():
                raise InputError(  # as `datasets` reads a CSV file
                    f"{record.where}: the column {column!r} is there twice, also as {name!r}; rename one of them"
                )
            if name in CONTENT and not chosen:
                _refuse(record, name, task, names)
            found[name] = re.sub(r"(:\d+|\[\d+\])$", "", record.where)
    if not found:
        return None
    sentence = (
        f"field{'s' if len(found) > 1 else ''} {', '.join(map(str, found))} of {next(iter(found.values()))} "
        f"{'are' if len(found) > 1 else 'is'} not used"
    )
    if not task.template or task.is_chat:
        return sentence
    named = ", ".join(f"{{{name}}}" for name in found if str(name).isidentifier())
    return f"{sentence} by the template; add {named or 'them'} to --template, or ignore this"


def _is_content(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip()) and not isinstance(value, ClassName)
    return isinstance(value, list | Mapping) and bool(value)


def _refuse(record: Record, name: str, task: Task, names: Mapping[str, str]) -> None:
    """Refuse to leave out the field; but what is called `text` is all that plain text is made of."""
    role = (task.prompt_fields or task.fields)[0]
    read = find_field(record, role, names) or role
    if not task.template and read == "text":
        return
    if task.is_chat:
        raise InputError(
            f"{record.where}: field {name!r} would be left out of the chat; put it into the messages, or say that it "
            f"is not needed: --fields {role}={read}"
        )
    what = "the prompt" if task.template else "the text"
    raise InputError(
        f"{record.where}: field {name!r} would be left out, since {what} is made of {read!r}; say what it is to be "
        f"made of, e.g. --template '{{{name}}} {{{read}}}', or that {name} is not needed: --fields {role}={read}"
    )
