"""A Config from names and plain values, from a TOML or YAML file, and back into TOML."""

import difflib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import tomli_w

from zotune.config.checks import ADAPTER_OWN
from zotune.config.elsewhere import in_our_names, why_no_setting
from zotune.config.machine import check_machine
from zotune.config.renamed import new_name, translated
from zotune.config.settings import Config
from zotune.config.tables import TABLES
from zotune.config.typed import typed
from zotune.config.yaml_text import parse_yaml
from zotune.errors import InputError
from zotune.files import write_whole
from zotune.values import shown


def make_config(
    values: Mapping[str, Any], base: Config | None = None, where: str = "", *, elsewhere: bool = False
) -> Config:
    """A Config from names and plain values, over `base`; a table's values go over those that `base` has in it.

    Args:
        elsewhere: the values may be those of a run on another machine, so that this one's bounds are not for them.

    Raises:
        InputError: an unknown name (with the nearest known one), a value of the wrong type or out of range.
    """
    prefix = f"{where}: " if where else ""
    hints = get_type_hints(Config)
    names = [item.name for item in fields(Config) if item.name != "tables"]
    merged: dict[str, Any] = {name: getattr(base, name) for name in names} if base else {}
    tables = {name: dict(table) for name, table in base.tables.items()} if base else {}
    of_tables = values.get("tables", {})
    if not isinstance(of_tables, Mapping):
        raise InputError(f"{prefix}tables: expected tables of settings, got {shown(of_tables)}")
    try:
        given = in_our_names({**values, **of_tables}, {**hints, **dict.fromkeys(TABLES)})
    except InputError as error:
        raise InputError(f"{prefix}{error}") from None
    for key, value in given.items():
        name = key.replace("-", "_") if isinstance(key, str) else shown(key)
        if name in TABLES:
            if not isinstance(value, Mapping):
                raise InputError(f"{prefix}{name}: expected a table, got {shown(value)}")
            tables[name] = {**tables.get(name, {}), **value}
        elif name in names:
            made_in_memory = elsewhere and (name, value) == ("model", "")
            merged[name] = value if made_in_memory else typed(value, hints[name], name, prefix)
        elif name != "tables":
            raise InputError(f"{prefix}{_unknown(key, name, [*names, *TABLES])}")
    try:
        if not elsewhere:
            check_machine(merged, given)
        return Config(**merged, tables={name: table for name, table in tables.items() if table})
    except InputError as error:
        raise InputError(f"{prefix}{error}") from None


def read_settings(path: Path) -> Config:
    """The settings of a TOML or YAML file that a user wrote; YAML by its name."""
    if path.suffix.lower() not in (".yaml", ".yml"):
        return read_toml(path)
    values = _read(path, "YAML", parse_yaml)
    if not isinstance(values, Mapping):
        raise InputError(f"{path}: expected settings by their names, got {shown(values)}")
    return make_config(values, where=str(path))


def read_toml(path: Path) -> Config:
    """The settings of a TOML file that a user wrote."""
    return make_config(toml_values(path), where=str(path))


def read_run_config(path: Path) -> Config:
    """The settings in a run folder's config.toml, also of one that an older zotune wrote, or that has been moved since.

    Whoever made the folder does not decide that code of a model is run: --trust-remote-code is never taken from it.
    """
    config = make_config(translated(toml_values(path)), where=str(path), elsewhere=True)
    here = path.parent.resolve()
    kept: dict[str, Any] = {
        name: str(here / f"{name}.jsonl")
        for name in ("train_data", "eval_data")
        if config.output_dir and getattr(config, name) == str(Path(config.output_dir) / f"{name}.jsonl")
    }
    return replace(config, output_dir=str(here), trust_remote_code=False, **kept)


def toml_values(path: Path) -> dict[str, Any]:
    """What a TOML file holds, unchecked."""
    values: dict[str, Any] = _read(path, "TOML", tomllib.loads)
    return values


def _read(path: Path, kind: str, parse: Callable[[str], Any]) -> Any:
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise InputError(f"cannot read {path}: it is no file")
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except RecursionError as error:
        raise InputError(f"{path} is not {kind} that can be read: it is nested too deeply") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not {kind}: {error}") from error


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
    if (instead := why_no_setting(name)) is not None:
        return f"{key} is no setting here: {instead}"
    close = difflib.get_close_matches(name, names, n=1)
    return f"unknown setting {key!r}" + (f"; did you mean {close[0]}?" if close else "")
