"""A setting that one method alone has: a field of its class that says what it means and which values it takes.

The command line, TOML files and keyword arguments find it there: `--adam.beta1 0.9`, `[adam]`, `adam={"beta1": 0.9}`.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from zotune.errors import InputError
from zotune.values import is_flag, is_number, is_whole, number_of, shown


@dataclass(frozen=True)
class Setting:
    """`default` has the setting's type. Numbers lie within the bounds that are given; texts are among `choices`."""

    default: Any
    help: str
    at_least: float | None = None
    above: float | None = None
    below: float | None = None
    at_most: float | None = None
    choices: tuple[str, ...] = ()

    def checked(self, flag: str, value: Any) -> Any:
        """The value in the setting's type.

        Raises:
            InputError: names the flag, what is allowed and what was got.
        """
        kind = type(self.default)
        if kind is float and is_number(value):
            value = number_of(value)
        elif kind is int and is_whole(value):
            value = int(value)
        if type(value) is not kind or not self._allows(value):
            got = value if isinstance(value, float) and not is_flag(value) else shown(value)
            raise InputError(f"{flag} must be {self._allowed()}, got {got}")
        return value

    def _allows(self, value: Any) -> bool:
        if isinstance(value, str):
            return value in self.choices
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )

    def _allowed(self) -> str:
        if self.choices:
            return " or ".join(map(repr, self.choices))
        bounds = [] if self.at_least is None else [f"{self.at_least:g} or more"]
        bounds += [] if self.above is None else [f"above {self.above:g}"]
        bounds += [] if self.below is None else [f"below {self.below:g}"]
        bounds += [] if self.at_most is None else [f"at most {self.at_most:,}"]
        kind = "a whole number, " if isinstance(self.default, int) else "a finite number, "
        return kind + " and ".join(bounds)


def setting(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that is a setting."""
    return field(
        default=default, metadata={"setting": Setting(default, help, at_least, above, below, at_most, choices)}
    )


def settings_of(made: Any) -> dict[str, Setting]:
    """The settings of a method's class, by name."""
    return {item.name: item.metadata["setting"] for item in fields(made) if "setting" in item.metadata}


def flag_of(table: str, name: str) -> str:
    """The flag of a setting in a table, as the command line has it."""
    return f"--{table}.{name}".replace("_", "-")


def checked(table: str, values: Mapping[str, Any], known: Mapping[str, Setting]) -> dict[str, Any]:
    """The values of a table, each in its type.

    Raises:
        InputError: an unknown name, with the nearest known one, or a value that is not allowed.
    """
    result = {}
    for key, value in values.items():
        if not isinstance(key, str):
            raise InputError(f"{table}: expected names of settings, got {shown(key)}")
        name = key.replace("-", "_")
        flag = flag_of(table, name)
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise InputError(f"{flag}: {table} has no setting {name!r}{hint} (it has {', '.join(known)})")
        result[name] = known[name].checked(flag, value)
    return result
