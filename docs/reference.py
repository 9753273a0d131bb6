"""Pages of the site that are made from the source when it is built: a hook of mkdocs, named in mkdocs.yml.

The reference comes from the dataclasses of the commands, the tables of methods and the names in `zotune.__all__`, with
their docstrings; the home page from README.md; two pages are files of the root. A page says where its text goes by a
line `<!-- made: NAME -->`.
"""

import re
import types
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import griffe

import zotune
from zotune.cli import COMMANDS
from zotune.config.elsewhere import NO_SETTING, SAME
from zotune.config.fields import Fields
from zotune.config.settings import Config
from zotune.config.tables import ENGINE_TABLES, METHOD_TABLES
from zotune.zo.setting import Setting

ROOT = Path(__file__).parents[1]
MADE = re.compile(r"^<!-- made: (\w+) -->$", re.MULTILINE)
KINDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}
SOURCE = griffe.load("zotune", search_paths=[ROOT / "src"])


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What mkdocs calls with the text of each page."""
    return MADE.sub(lambda found: PARTS[found[1]](), markdown)


def home() -> str:
    return _of_the_root("README.md")


def changelog() -> str:
    return _of_the_root("CHANGELOG.md")


def contributing() -> str:
    return _of_the_root("CONTRIBUTING.md")


def settings() -> str:
    """Every setting of `zotune train`, each with a heading that links can name: those that all share, then tables."""
    return "\n".join(_entry(option) for option in _options(Config)) + "\n" + _tables()


def commands() -> str:
    """Every command with the options that are not settings of `train`."""
    texts = []
    for name, (file, made, _) in COMMANDS.items():
        command = getattr(import_module(f"zotune.commands.{file}"), made)
        takes_settings = issubclass(command, Config)
        texts.append(f"## zotune {name}\n\n{_docstring(command)}\n")
        if takes_settings:
            texts.append("It takes the [settings](settings.md).\n")
        texts += [
            f"- `{option.flag}` (*{option.kind}*): {' '.join(option.text.split())}"
            for option in _options(command)
            if not (takes_settings and option.owner is Fields)
        ]
        texts.append("")
    return "\n".join(texts)


def api() -> str:
    """The public names, with the docstrings that they have in the source."""
    return "\n".join(f"::: zotune.{name}\n" for name in sorted(zotune.__all__, key=str.lower))


def same_elsewhere() -> str:
    """Names from elsewhere that stand for settings."""
    rows = (
        f"| {', '.join(f'`{name}`' for name, setting in SAME.items() if setting == ours)} | "
        f"[`--{ours.replace('_', '-')}`](settings.md#{ours}) |"
        for ours in dict.fromkeys(SAME.values())
    )
    return "\n".join(["| elsewhere | here |", "|---|---|", *rows])


def instead_of() -> str:
    """Names from elsewhere that mean nothing here."""
    rows = (f"| `{name}` | {instead} |" for name, instead in NO_SETTING.items())
    return "\n".join(["| elsewhere | instead |", "|---|---|", *rows])


PARTS: dict[str, Callable[[], str]] = {
    "home": home, "changelog": changelog, "contributing": contributing, "settings": settings, "commands": commands,
    "api": api, "same_elsewhere": same_elsewhere, "instead_of": instead_of,
}  # fmt: skip


def _of_the_root(name: str) -> str:
    """A page of the repository's root, with links as they are on the site."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
    return text.replace("](CHANGELOG.md", "](changelog.md").replace("](CONTRIBUTING.md", "](contributing.md")


class Option(NamedTuple):
    """A setting as the user meets it."""

    flag: str
    anchor: str
    kind: str
    text: str
    owner: type | None = None


def _options(made: type) -> Iterator[Option]:
    """The options of a dataclass; its `tables` are those of engines, whose names only the engine knows."""
    hints = get_type_hints(made, include_extras=True)
    for field in fields(made):
        hint, *extras = (
            get_args(hints[field.name]) if get_origin(hints[field.name]) is Annotated else [hints[field.name]]
        )
        owner = next(owner for owner in made.__mro__ if field.name in _source(owner).members)
        if field.name == "tables":
            if not issubclass(made, Config):
                text = "Options of the engine's own, as for `train`."
                yield from (Option(f"--{name}.NAME", name, "any option of the engine", text) for name in ENGINE_TABLES)
            continue
        flag = f"--{field.name.replace('_', '-')}"
        if "Positional" in map(str, extras):  # tyro's mark of what has no flag
            flag = next(extra.metavar for extra in extras if hasattr(extra, "metavar"))
        kind = ", ".join(filter(None, (_kind(hint), _default(field))))
        yield Option(flag, field.name, kind, _field_docstring(owner, field.name), owner)


def _tables() -> str:
    """The tables that one method alone has, and those of engines."""
    texts = []
    for table, known in METHOD_TABLES.items():
        for name, setting in known.items():
            flag = f"--{table}.{name}".replace("_", "-")
            texts.append(_entry(Option(flag, f"{table}-{name}", _setting_kind(setting), setting.help)))
    for table in ENGINE_TABLES:
        text = f"Any option of {table}'s own, by its name there, with `--engine {table}`."
        texts.append(_entry(Option(f"--{table}.NAME", table, f"as {table} has it", text)))
    return "\n".join(texts)


def _entry(option: Option) -> str:
    return f"## `{option.flag}` {{ #{option.anchor} }}\n\n*{option.kind}*\n\n{option.text}\n"


def _kind(hint: Any) -> str:
    words = []
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for member in [member for member in members if member is not type(None)]:
        if get_origin(member) is Literal:
            words.append("one of " + ", ".join(f"`{value}`" for value in get_args(member)))
        else:
            words.append("one or more texts" if get_origin(member) is tuple else KINDS[member])
    return " or ".join(words)


def _default(field: Field[Any]) -> str:
    """The default where it is a value; where it is None or empty, the docstring says what that means."""
    if field.default is MISSING and field.default_factory is MISSING:
        return "must be given"
    value = field.default
    if value is MISSING or value in (None, (), ""):
        return ""
    if isinstance(value, tuple):
        return "default " + " ".join(f"`{item}`" for item in value)
    return f"default `{str(value).lower() if isinstance(value, bool) else value}`"


def _setting_kind(setting: Setting) -> str:
    facts = ["one of " + ", ".join(f"`{choice}`" for choice in setting.choices)] if setting.choices else []
    facts = facts or [KINDS[type(setting.default)]]
    bounds = {"at least": setting.at_least, "above": setting.above, "below": setting.below}
    facts += [f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None]
    return ", ".join([*facts, f"default `{setting.default}`"])


def _source(made: type) -> griffe.Object:
    found = SOURCE[f"{made.__module__.removeprefix('zotune.')}.{made.__qualname__}"]
    assert isinstance(found, griffe.Object)
    return found


def _docstring(made: type) -> str:
    docstring = _source(made).docstring
    assert docstring, f"{made.__name__} has no docstring"
    return docstring.value


def _field_docstring(owner: type, name: str) -> str:
    """The text below a field, in the class that declares it."""
    docstring = _source(owner).members[name].docstring
    assert docstring, f"{owner.__name__}.{name} has no docstring"
    return docstring.value
