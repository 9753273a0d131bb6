"""The messages of a chat, as records have them: a list of objects with a role and a content."""

from collections.abc import Mapping, Sequence
from typing import Any

from zotune.data.records import Record
from zotune.errors import InputError
from zotune.values import is_torn, shown

Message = Mapping[str, Any]


def read_messages(record: Record, field: str) -> tuple[tuple[Message, ...], Mapping[str, Any]]:
    """The messages of a prompt, and the record's columns. A text is what a user says.

    Where the messages of the record end in an answer, that is no part of the prompt; rewards find it in the column
    `completion`, unless the record has one.

    Raises:
        InputError: no messages, with the place of the record.
    """
    messages = record.fields[field]
    if _is_text(messages) and messages.strip():
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InputError(f"{record.where}: field {field!r} should be a list of messages, got {shown(messages)}")
    for message in messages:
        if not (isinstance(message, Mapping) and _is_text(message.get("role")) and _is_text(message.get("content"))):
            raise InputError(
                f"{record.where}: a message of field {field!r} should have a role and a content, both text, got "
                f"{shown(message)}"
            )
    if messages[-1]["role"] != "assistant":
        return tuple(messages), record.fields
    if len(messages) == 1:
        raise InputError(f"{record.where}: field {field!r} has an answer alone, and nothing that was asked")
    return tuple(messages[:-1]), {"completion": messages[-1]["content"], **record.fields}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not is_torn(value)
