"""What a completion says, and which answers its record calls right.

Prompts and completions are texts, or lists of messages for chat data, `[{"role": "assistant", "content": "Hello"}]`, as
in TRL. A right answer stands in a column of the data: a text, a number, or a list of them of which any counts.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from zotune.errors import InputError

GOLD_COLUMNS = ("answer", "answers", "ground_truth", "solution", "completion")
"""Where a right answer is looked for, in this order, where no column is named."""

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def text_of(written: Any) -> str:
    """What a completion or a prompt says: itself, or the content of its last message."""
    if isinstance(written, str):
        return written
    content = written[-1].get("content") if written else None
    if isinstance(content, list):  # the parts of a message, of which some are pictures
        return "".join(part.get("text", "") for part in content if isinstance(part, Mapping))
    return content or ""


def tagged_answer(text: str) -> str | None:
    """What stands in the last `<answer>` of a text; None where there is no such thing."""
    found = _ANSWER.findall(text)
    return found[-1].strip() if found else None


def right_answers(columns: Mapping[str, Sequence[Any]], column: str | None) -> list[list[str]]:
    """The right answers of each record; none for a record that names none.

    Args:
        columns: the data, by the name of each column.
        column: the one that has them; None: the first of GOLD_COLUMNS that the data have.

    Raises:
        InputError: there is no such column.
    """
    found = next((name for name in ([column] if column else GOLD_COLUMNS) if name in columns), None)
    if found is None:
        raise InputError(
            f"finds no right answers: the data have no column {column or ' or '.join(GOLD_COLUMNS)}, but "
            f"{', '.join(columns) or 'none at all'}; name the column behind a colon, as in exact_match:COLUMN"
        )
    return [_texts(value) for value in columns[found]]


def _texts(value: Any) -> list[str]:
    """One value of a column as texts; SQuAD has a list of them under the name `text`, in an object."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        value = value.get("text", [])
    return [str(each) for each in value] if isinstance(value, list | tuple) else [str(value)]
