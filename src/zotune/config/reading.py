"""A Config from names and plain values, from a TOML file, and back into one."""

import difflib
import tomllib
import types
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import tomli_w

from zotune.config.checks import ADAPTER_OWN
from zotune.config.renamed import new_name, translated
from zotune.config.settings import Config
from zotune.config.tables import TABLES
from zotune.errors import InputError
from zotune.files import write_whole


def make_config(values: Mapping[str, Any], base: Config | None = None, where: str = "") -> Config:
    """A Config from names and plain values, over `base`; a table's values go over those that `base` has in it.

    Raises:
        InputError: an unknown name (with the nearest known one), a value of the wrong type or out of range.
    """
    prefix = f"{where}: " if where else ""
    hints = get_type_hints(Config)
    names = [item.name for item in fields(Config) if item.name != "tables"]
    merged: dict[str, Any] = {name: getattr(base, name) for name in names} if base else {}
    tables = {name: dict(table) for name, table in base.tables.items()} if base else {}
    given = {**values, **values.get("tables", {})}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name in TABLES:
            if not isinstance(value, Mapping):
                raise InputError(f"{prefix}{name}: expected a table, got {value!r}")
            tables[name] = {**tables.get(name, {}), **value}
        elif name in names:
            merged[name] = _typed(value, hints[name], f"{prefix}{name}")
        elif name != "tables":
            raise InputError(f"{prefix}{_unknown(key, name, [*names, *TABLES])}")
    try:
        return Config(**merged, tables={name: table for name, table in tables.items() if table})
    except InputError as error:
        raise InputError(f"{prefix}{error}") from None


def read_toml(path: Path) -> Config:
    """The settings of a TOML file that a user wrote."""
    return make_config(toml_values(path), where=str(path))


def read_run_config(path: Path) -> Config:
    """The settings in a run folder's config.toml, also of one that an older zotune wrote."""
    return make_config(translated(toml_values(path)), where=str(path))


def toml_values(path: Path) -> dict[str, Any]:
    """What a TOML file holds, unchecked."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from error


def write_toml(config: Config, path: Path) -> None:
    """Write the settings that hold: those that are not None, and not of an adapter that has its own. `read_toml` gives
    the same Config back."""
    values = asdict(config)
    tables = values.pop("tables")
    void = ADAPTER_OWN if config.adapter is not None else ()
    known = {name: value for name, value in values.items() if value is not None and name not in void}
    write_whole(path, tomli_w.dumps({**known, **tables}).encode())


def _unknown(key: str, name: str, names: list[str]) -> str:
    if (now := new_name(name)) is not None:
        return f"{key} is no setting any more; use {now}"
    close = difflib.get_close_matches(name, names, n=1)
    return f"unknown setting {key!r}" + (f"; did you mean {close[0]}?" if close else "")


def _typed(value: Any, hint: Any, name: str) -> Any:
    """`value` as `hint` (the types used in Config), or an InputError that names it."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if option is type(None) and value is None:
            return None
        if get_origin(option) is Literal and value in get_args(option):
            return value
        if get_origin(option) is tuple and isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
            return tuple(value)
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if option in (str, bool) and isinstance(value, option):
            return value
    raise InputError(f"{name}: expected {_describe(options)}, got {value!r}")


def _describe(options: tuple[Any, ...]) -> str:
    def describe(option: Any) -> str:
        if get_origin(option) is Literal:
            return " or ".join(map(repr, get_args(option)))
        if get_origin(option) is tuple:
            return "a list of strings"
        return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[option]

    return " or ".join(describe(option) for option in options if option is not type(None))
