"""JSON from people: what is not JSON is refused, and what Python would not read as it is written."""

import json
from typing import Any

from zotune.errors import InputError


class _NotThatWay(ValueError):
    """JSON that would lose something."""


def parse_json(text: str, place: str, whole_file: bool = False) -> Any:
    """The value of a JSON text; `place` is where it stands, such as "train.jsonl:7".

    Args:
        whole_file: the text is a file of its own, named by `place`, so that the line of a mistake is added.

    Raises:
        InputError: not JSON, a key twice in an object, a number or a nesting beyond what Python takes.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        line = f":{error.lineno}" if whole_file else ""
        hint = "; one object a line is JSON lines, name it .jsonl" if whole_file and error.msg == "Extra data" else ""
        raise InputError(
            f"{place}{line}: not JSON: {error.msg.removesuffix(' at')} at column {error.colno}{hint}"
        ) from error
    except _NotThatWay as error:
        raise InputError(f"{place}: {error}") from error
    except RecursionError as error:
        raise InputError(f"{place}: lists or objects are nested too deeply to be read") from error
    except ValueError as error:  # the only other one: more digits than Python makes a number of
        raise InputError(f"{place}: a whole number has too many digits to be read") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise _NotThatWay(f"an object has the key {double!r} twice")
    return found
