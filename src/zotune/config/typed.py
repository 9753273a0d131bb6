"""A value in the type of its setting, whatever was given for it."""

import types
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin

from zotune.errors import InputError
from zotune.values import is_flag, is_number, is_whole, number_of, path_of, shown, text_of

PATHS = (  # or ids of the hub
    "model",
    "adapter",
    "train_data",
    "eval_data",
    "stream_data",
    "output_dir",
    "chat_template",
)


def typed(value: Any, hint: Any, name: str, prefix: str = "") -> Any:
    """`value` as `hint`, one of the types used in Config.

    Raises:
        InputError: names the setting, what is allowed and what was got; `prefix` says where it stands.
    """
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    called = f"{prefix}{name}"
    if value is None and type(None) in options:
        return None
    if name in PATHS:
        return path_of(value, called)
    for option in options:
        if get_origin(option) is Literal and isinstance(value, str) and value in get_args(option):
            return value
        if get_origin(option) is tuple and isinstance(value, Sequence) and not isinstance(value, str | bytes):
            if get_args(option)[0] is str:
                return tuple(text_of(text, called) for text in value)
            if all(map(is_number, value)):
                return tuple(map(number_of, value))
        if option is float and is_number(value):
            return number_of(value)
        if option is int and is_whole(value):
            return int(value)
        if option is bool and is_flag(value):
            return bool(value)
        if option is str and isinstance(value, str):
            return text_of(value, called)
    raise InputError(f"{called}: expected {_describe(options)}, got {shown(value)}")


def _describe(options: tuple[Any, ...]) -> str:
    def describe(option: Any) -> str:
        if get_origin(option) is Literal:
            return " or ".join(map(repr, get_args(option)))
        if get_origin(option) is tuple:
            return f"a list of {'strings' if get_args(option)[0] is str else 'numbers'}"
        return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[option]

    return " or ".join(describe(option) for option in options if option is not type(None))
