"""The tables of settings that one method or engine alone has, by its name: what is in them, and whether they apply."""

from collections.abc import Mapping
from typing import Any

from zotune.adapter.spec import PromptSpec
from zotune.config.fields import Fields
from zotune.engine import ENGINES
from zotune.errors import InputError
from zotune.zo.estimators import ESTIMATORS
from zotune.zo.noise import Noise
from zotune.zo.optimizers import OPTIMIZERS
from zotune.zo.setting import Setting, checked, flag_of, settings_of

_MADE: dict[str, dict[str, Any]] = {
    "estimator": ESTIMATORS,
    "optimizer": OPTIMIZERS,
    "noise": {"low_rank": Noise},
    "tuning": {"prompt_tuning": PromptSpec},
}
METHOD_TABLES: dict[str, dict[str, Setting]] = {
    name: settings for rows in _MADE.values() for name, made in rows.items() if (settings := settings_of(made))
}
ENGINE_TABLES = tuple(name for name, kind in ENGINES.items() if kind.has_options)
TABLES = (*METHOD_TABLES, *ENGINE_TABLES)


def check_tables(config: Fields, method: Mapping[str, Any]) -> None:
    """Refuse tables of what the run does not use, and unknown or wrong settings in those of what it uses.

    Raises:
        InputError: names the flag.
    """
    for name, table in config.tables.items():
        if name in ENGINE_TABLES:
            kind = ENGINES[config.engine]
            if ENGINES[name] not in (kind, kind.computing(config.tables)):
                raise InputError(
                    f"--{name}.* options have no effect with --engine {config.engine}; add --engine {name}"
                )
            ENGINES[name].check_options(table)
            continue
        values = checked(name, table, METHOD_TABLES[name])
        options = [option for option, rows in _MADE.items() if name in rows]
        if name not in [method[option] for option in options]:
            flag = flag_of(name, next(iter(values)))
            chosen = " and ".join(f"--{option} {method[option]}" for option in options)
            raise InputError(f"{flag} has no effect with {chosen}; it is for --{options[0]} {name}")


def settings_for(config: Fields, name: str, made: Any) -> dict[str, Any]:
    """What a run gives to the settings of the class `made`, from the table `name`, each in its type."""
    own = settings_of(made)
    values = checked(name, config.tables.get(name, {}), METHOD_TABLES.get(name, {}))
    return {key: value for key, value in values.items() if key in own}
