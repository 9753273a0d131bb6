"""The options of a command from its words: each command is a dataclass, whose fields are its options.

Settings that one method alone has are flags of its table, `--adam.beta1 0.9`; so are an engine's own options, whose
names only the engine knows.
"""

import ast
import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import field, fields, make_dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

from zotune.errors import InputError
from zotune.values import path_of
from zotune.zo.setting import Setting

METAVARS = {
    str: "STR", int: "INT", float: "FLOAT", tuple[str, ...]: "[STR [STR ...]]", tuple[float, ...]: "[FLOAT [FLOAT ...]]"
}  # fmt: skip


def parse_command(command: Any, name: str, words: list[str]) -> Any:
    """A command of the dataclass `command`, from the words behind its name.

    A command whose dataclass has `from_file` takes a file of settings, TOML or YAML, as its first word or behind
    --config; flags win over it. Flags may have the names that people know from elsewhere.
    """
    default = None
    if hasattr(command, "from_file"):
        default, words = _settings_file(words)
        words = _in_our_names(words)
    options: dict[str, dict[str, Any]] = {}
    if "tables" in command.__dataclass_fields__:
        options, words = _engine_options(words)
        command = _with_tables(command)
    _refuse_old_names(words)
    given = {} if default is None else {"default": command.from_file(default)}
    parsed = tyro.cli(
        _with_plain_help(command), args=words, prog=f"zotune {name}", config=(tyro.conf.FlagCreatePairsOff,),
        description=inspect.cleandoc(command.__doc__), **given,
    )  # fmt: skip
    if not options and not hasattr(parsed, "tables"):
        return parsed
    return replace(parsed, tables=_merged(parsed, options))


def _settings_file(words: list[str]) -> tuple[Path | None, list[str]]:
    """The file of settings that a command line names, and the rest of it."""
    files, rest = [], list(words)
    if rest and not rest[0].startswith("-"):
        files.append(path_of(rest.pop(0), "settings file"))
    for index, word in reversed(list(enumerate(rest))):
        if word.partition("=")[0] != "--config":
            continue
        end = index + (1 if "=" in word else 2)
        (value,) = [word.partition("=")[2]] if "=" in word else rest[index + 1 : end] or [""]
        files.append(path_of(value, "--config"))
        del rest[index:end]
    if len(files) > 1:
        raise InputError(f"--config: one file of settings can be read, got {', '.join(files)}")
    return (Path(files[0]) if files else None), rest


def _in_our_names(words: Sequence[str]) -> list[str]:
    """The command line with flags under the names that they have here."""
    from zotune.config.elsewhere import SAME
    from zotune.config.settings import Config

    known = {item.name for item in fields(Config)}
    result: list[str] = []
    given: dict[str, str] = {}
    for word in words:
        flag, equals, value = word.partition("=")
        name = flag[2:].replace("-", "_")
        ours = SAME.get(name, name)
        if word.startswith("--") and ours in known:
            if given.setdefault(ours, flag) != flag and SAME.keys() & {name, given[ours][2:].replace("-", "_")}:
                raise InputError(f"{flag} and {given[ours]} are the same here; give one of the two")
            word = word if ours == name else f"--{ours.replace('_', '-')}{equals}{value}"
        result.append(word)
    return result


def _refuse_old_names(words: Sequence[str]) -> None:
    from zotune.config.elsewhere import why_no_setting
    from zotune.config.renamed import new_name

    for word in words:
        flag = word.partition("=")[0]
        name = flag[2:].replace("-", "_")
        if not word.startswith("--"):
            continue
        if (now := new_name(name)) is not None:
            raise InputError(f"{flag} is no option any more; use {now}")
        if (instead := why_no_setting(name)) is not None:
            raise InputError(f"{flag} is no option here: {instead}")


def _engine_options(words: list[str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Take --ENGINE.NAME VALUE ... and --ENGINE.NAME=VALUE out of a command line: the options, and the rest of it."""
    from zotune.config.tables import ENGINE_TABLES
    from zotune.engine import ENGINES

    options: dict[str, dict[str, Any]] = {}
    rest: list[str] = []
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        table, dot, name = word.removeprefix("--").partition(".")
        if not (word.startswith("--") and dot and table in ENGINE_TABLES):
            rest.append(word)
            continue
        name, equals, value = name.partition("=")
        values = [value] if equals else []
        while not equals and index < len(words) and not words[index].startswith("--"):
            values.append(words[index])
            index += 1
        name = name.replace("-", "_")
        options.setdefault(table, {})[name] = ENGINES[table].parse_option(name, values)
    return options, rest


@cache
def _with_tables(command: Any) -> Any:
    """The command with the tables of methods as options of its own."""
    from zotune.config.tables import METHOD_TABLES

    tables = []
    for name, settings in METHOD_TABLES.items():
        items = [
            (key, Annotated[type(setting.default) | None, _argument(setting)], field(default=None))
            for key, setting in settings.items()
        ]
        made = make_dataclass(name, items, frozen=True)
        made.__doc__ = f"Settings of {name} alone."
        tables.append((name, made, field(default=made())))
    result = make_dataclass(command.__name__, tables, bases=(command,), frozen=True)
    result.__doc__ = command.__doc__
    return result


def _argument(setting: Setting) -> Any:
    metavar = "{" + ",".join(setting.choices) + "}" if setting.choices else METAVARS[type(setting.default)]
    return tyro.conf.arg(help=f"{setting.help} Default: {setting.default}.", metavar=metavar, help_behavior_hint="")


def _merged(parsed: Any, options: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """All tables: of the TOML file, over them those of flags."""
    from zotune.config.tables import METHOD_TABLES

    flags = {name: vars(getattr(parsed, name)) for name in METHOD_TABLES if hasattr(parsed, name)} | options
    tables = {name: dict(table) for name, table in parsed.tables.items()}
    for name, table in flags.items():
        given = {key: value for key, value in table.items() if value is not None}
        if given:
            tables[name] = {**tables.get(name, {}), **given}
    return tables


@cache
def _with_plain_help(command: Any) -> Any:
    """The command, whose help is the text below each field, and does not speak of None where that is a default."""
    hints, texts = get_type_hints(command, include_extras=True), _texts(command)
    for option in fields(command):
        hint = hints[option.name]
        if option.name == "tables":  # they have flags of their own
            command.__annotations__["tables"] = Annotated[dict[str, Any], tyro.conf.Suppress]
        elif option.default is None and get_origin(hint) is not Annotated:
            kind = next(kind for kind in get_args(hint) if kind is not type(None))
            metavar = METAVARS.get(kind) or "{" + ",".join(get_args(kind)) + "}"
            argument = tyro.conf.arg(help=texts[option.name], metavar=metavar, help_behavior_hint="")
            command.__annotations__[option.name] = Annotated[hint, argument]
        elif option.name in texts:
            command.__annotations__[option.name] = Annotated[hint, tyro.conf.arg(help=texts[option.name])]
    return command


def _texts(command: Any) -> dict[str, str]:
    """The text below each field of a dataclass and of those that it inherits from, in one line."""
    found: dict[str, str] = {}
    for made in reversed(command.__mro__):
        if not hasattr(made, "__dataclass_fields__") or made.__module__ == "types":  # such as one with tables
            continue
        (declared,) = ast.parse(textwrap.dedent(inspect.getsource(made))).body
        assert isinstance(declared, ast.ClassDef)
        for item, text in pairwise(declared.body):
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and isinstance(text, ast.Expr):
                found[item.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found
