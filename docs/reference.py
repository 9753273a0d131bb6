"""Pages of the site that are made from the source when it is built: a hook of mkdocs, named in mkdocs.yml.

The reference comes from the dataclasses of the commands and from the names in `zotune.__all__`, with their docstrings;
the home page from README.md; two pages are files of the root. A page says where its text goes by a line
`<!-- made: NAME -->`.
"""

import re
import types
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import griffe

import zotune
from zotune.cli import COMMANDS
from zotune.config.settings import Config

ROOT = Path(__file__).parents[1]
MADE = re.compile(r"^<!-- made: (\w+) -->$", re.MULTILINE)
KINDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What mkdocs calls with the text of each page."""
    return MADE.sub(lambda found: PARTS[found[1]](), markdown)


def home() -> str:
    """README.md, with links as they are on the site."""
    return _as_on_the_site((ROOT / "README.md").read_text(encoding="utf-8"))


def changelog() -> str:
    return _as_on_the_site((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))


def contributing() -> str:
    return _as_on_the_site((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))


def settings() -> str:
    """Every setting of `zotune train`, in the order of the source, with a heading that links can name."""
    return "\n".join(
        f"## `{option.flag}` {{ #{option.anchor} }}\n\n*{option.kind}*\n\n{option.text}\n"
        for option in _options(Config)
    )


def commands() -> str:
    """Every command with the options that are not settings of `train`."""
    texts = []
    for name, command in COMMANDS.items():
        takes_settings = issubclass(command, Config)
        texts.append(f"## zotune {name}\n\n{_docstring(command)}\n")
        if takes_settings:
            texts.append("It takes the [settings](settings.md).\n")
        texts += [
            f"- `{option.flag}` (*{option.kind}*): {' '.join(option.text.split())}"
            for option in _options(command)
            if not (takes_settings and option.owner is Config)
        ]
        texts.append("")
    return "\n".join(texts)


def api() -> str:
    """The public names, with the docstrings that they have in the source."""
    return "\n".join(f"::: zotune.{name}\n" for name in sorted(zotune.__all__, key=str.lower))


PARTS: dict[str, Callable[[], str]] = {
    "home": home, "changelog": changelog, "contributing": contributing, "settings": settings, "commands": commands,
    "api": api,
}  # fmt: skip


def _as_on_the_site(text: str) -> str:
    text = text.replace("](docs/", "](").replace("](CHANGELOG.md)", "](changelog.md)")
    return text.replace("](CONTRIBUTING.md)", "](contributing.md)")


class Option(NamedTuple):
    """A field of a dataclass as the user meets it."""

    flag: str
    anchor: str
    kind: str
    text: str
    owner: type


def _options(made: type, table: str = "") -> Iterator[Option]:
    """The options of a dataclass; a field that is itself a dataclass is a table of options, `--table.name`."""
    hints = get_type_hints(made, include_extras=True)
    for field in fields(made):
        name = f"{table}.{field.name}" if table else field.name
        hint, *extras = (
            get_args(hints[field.name]) if get_origin(hints[field.name]) is Annotated else [hints[field.name]]
        )
        tables = [part for part in _members(hint) if is_dataclass(part)]
        for part in tables:
            assert isinstance(part, type)
            yield from _options(part, name)
        if tables:
            continue
        flag = f"--{name.replace('_', '-')}" + (".NAME" if get_origin(hint) is dict else "")
        if "Positional" in map(str, extras):  # tyro's mark of what has no flag
            flag = next(extra.metavar for extra in extras if hasattr(extra, "metavar"))
        kind = ", ".join(filter(None, (_kind(hint), _default(field))))
        owner = next(owner for owner in made.__mro__ if field.name in _source(owner).members)
        yield Option(flag, name.replace(".", "-"), kind, _field_docstring(owner, field.name), owner)


def _members(hint: Any) -> tuple[Any, ...]:
    """The members of a union without None, or the hint itself."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return tuple(part for part in parts if part is not type(None))


def _kind(hint: Any) -> str:
    words = []
    for part in _members(hint):
        if get_origin(part) is Literal:
            words.append("one of " + ", ".join(f"`{value}`" for value in get_args(part)))
        elif get_origin(part) is tuple:
            words.append("one or more texts")
        elif get_origin(part) is dict:
            words.append("any number of these")
        else:
            words.append(KINDS[part])
    return " or ".join(words)


def _default(field: Any) -> str:
    """The default where it is a value; where it is None or empty, the docstring says what that means."""
    if field.default is MISSING and field.default_factory is MISSING:
        return "must be given"
    value = field.default if field.default is not MISSING else field.default_factory()
    if value is None or (not value and not isinstance(value, int | float)):
        return ""
    if isinstance(value, tuple):
        return "default " + " ".join(f"`{item}`" for item in value)
    return f"default `{str(value).lower() if isinstance(value, bool) else value}`"


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


SOURCE = griffe.load("zotune", search_paths=[ROOT / "src"])
