"""The messages of a chat, as records have them: a list of objects with a role and a content, and the tools beside them.

The shapes are those of TRL's conversational data sets: `messages`; `prompt` and `completion`, each a list of messages;
`prompt`, `chosen` and `rejected`. ShareGPT's `from` and `value` are read as role and content.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from zotune.data.records import Record
from zotune.errors import InputError
from zotune.values import is_torn, shown

Message = Mapping[str, Any]
Turn = tuple[tuple[Message, ...], Message]
"""What was said before, and the assistant's answer to it."""

_SHAREGPT = {
    "human": "user", "gpt": "assistant", "observation": "tool", "function_response": "tool"
}  # fmt: skip


def read_messages(record: Record, field: str) -> tuple[tuple[Message, ...], Mapping[str, Any]]:
    """The messages of a prompt, and the record's columns. A text is what a user says.

    Where the messages of the record end in an answer, that is no part of the prompt; rewards find it in the column
    `completion`, unless the record has one.

    Raises:
        InputError: no messages, with the place of the record.
    """
    messages = _messages(record, field, "user")
    if messages[-1]["role"] != "assistant":
        return messages, record.fields
    if len(messages) == 1:
        raise InputError(f"{record.where}: field {field!r} has an answer alone, and nothing that was asked")
    return messages[:-1], {"completion": messages[-1].get("content", ""), **record.fields}


def read_turns(record: Record, field: str, completion: str | None) -> list[Turn]:
    """Each turn of the assistant, with all that was said before it.

    Args:
        completion: the field with the messages to learn, where those of `field` are the prompt alone.

    Raises:
        InputError: no messages, or none of the assistant, with the place of the record.
    """
    messages = _messages(record, field, "user")
    first = 0
    if completion is not None:
        first, messages = len(messages), messages + _messages(record, completion, "assistant")
    turns = [
        (messages[:index], message)
        for index, message in enumerate(messages)
        if index >= first and message["role"] == "assistant"
    ]
    if not turns:
        raise InputError(
            f"{record.where}: field {completion or field!r} has no message of the assistant, so there is nothing to "
            "learn"
        )
    if not turns[0][0]:
        raise InputError(f"{record.where}: field {field!r} begins with an answer, and nothing that was asked")
    return turns


def read_pair(record: Record, field: str | None) -> tuple[tuple[Message, ...], tuple[Message, Message]]:
    """What was asked, and the answers in `chosen` and `rejected`, which may begin with what was asked.

    Args:
        field: that of the prompt, where there is one.

    Raises:
        InputError: the two do not answer the same, with the place of the record.
    """
    chosen, rejected = (_messages(record, name, "assistant") for name in ("chosen", "rejected"))
    before = chosen[:-1]
    if before != rejected[:-1] or {chosen[-1]["role"], rejected[-1]["role"]} != {"assistant"}:
        raise InputError(
            f"{record.where}: chosen and rejected should each end in one answer of the assistant, and say the same "
            "before it"
        )
    prompt = _messages(record, field, "user") if field is not None else ()
    if not set(map(repr, prompt)) <= set(map(repr, before)):  # else the prompt is there twice
        before = prompt + before
    if not before:
        raise InputError(f"{record.where}: chosen and rejected answer nothing; give what was asked in prompt")
    return before, (chosen[-1], rejected[-1])


def template_arguments(record: Record) -> dict[str, Any]:
    """What else a chat template is given: `tools`, a list of JSON schemas or its text, and `chat_template_kwargs`.

    Raises:
        InputError: they are of another kind, with the place of the record.
    """
    tools: Any = record.fields.get("tools")
    others: Any = record.fields.get("chat_template_kwargs")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools or "null")
        except ValueError as error:
            raise InputError(f"{record.where}: field 'tools' is not JSON: {error}") from error
    if tools and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise InputError(f"{record.where}: field 'tools' should be a list of JSON schemas, got {shown(tools)}")
    if others and not isinstance(others, Mapping):
        raise InputError(f"{record.where}: field 'chat_template_kwargs' should be an object, got {shown(others)}")
    return {**({"tools": tools} if tools else {}), **(others or {})}


def _messages(record: Record, field: str, of_text: str) -> tuple[Message, ...]:
    """The messages of a field; a text is one message, of the role `of_text`."""
    messages: Any = record.fields.get(field)
    if _is_text(messages) and messages.strip():
        messages = [{"role": of_text, "content": messages}]
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InputError(f"{record.where}: field {field!r} should be a list of messages, got {shown(messages)}")
    return tuple(_message(message, field, record.where) for message in messages)


def _message(message: Any, field: str, where: str) -> Message:
    """One message without what is null in it, as Arrow fills up what only other messages have."""
    if isinstance(message, Mapping):
        given = {name: value for name, value in message.items() if value is not None}
        if "role" not in given and "from" in given:
            given["role"] = _SHAREGPT.get(given["from"], given.pop("from"))
            given["content"] = given.pop("value", None)
            given.pop("from", None)
        calls = given.get("role") == "assistant" and bool(given.get("tool_calls"))
        if _is_text(given.get("role")) and (_is_text(given.get("content")) or (calls and "content" not in given)):
            return given
    raise InputError(
        f"{where}: a message of field {field!r} should have a role and a content, both text, got {shown(message)}"
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not is_torn(value)
