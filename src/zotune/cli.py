"""The command `zotune`: flags and TOML -> one of the commands.

Exit code 2: what was asked for cannot be done; 1: training had to stop.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_type_hints

import tyro

import zotune
from zotune.commands.analysis import Analyze
from zotune.commands.prediction import Evaluate, Predict
from zotune.commands.studies import Compare, Sweep
from zotune.commands.training import Plot, Profile, Replay, Resume, Tasks, Train
from zotune.config.settings import Config, read_toml
from zotune.engine.sglang.options import parse_flags
from zotune.errors import InputError, TrainingError

METAVARS = {str: "STR", int: "INT", float: "FLOAT", tuple[str, ...]: "[STR [STR ...]]"}


def _with_plain_help(command: Any) -> Any:
    """The command, whose help does not speak of None: where that is a default, the docstring says what it means."""
    hints = get_type_hints(command)
    for option in fields(command):
        if option.name == "sglang":  # taken out of the command line before it is parsed
            command.__annotations__["sglang"] = Annotated[dict[str, Any], tyro.conf.Suppress]
        elif option.default is None:
            kind = next(kind for kind in get_args(hints[option.name]) if kind is not type(None))
            metavar = METAVARS.get(kind) or "{" + ",".join(get_args(kind)) + "}"
            argument = tyro.conf.arg(metavar=metavar, help_behavior_hint="")
            command.__annotations__[option.name] = Annotated[hints[option.name], argument]
    return command


COMMANDS = {
    "train": Train, "evaluate": Evaluate, "predict": Predict, "resume": Resume, "replay": Replay, "plot": Plot,
    "compare": Compare, "sweep": Sweep, "analyze": Analyze, "profile": Profile, "tasks": Tasks,
}  # fmt: skip
COMMANDS = {name: _with_plain_help(command) for name, command in COMMANDS.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console command."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parse(arguments).run()
    except InputError as error:
        _fail(error, code=2)
    except TrainingError as error:
        _fail(error, code=1)
    except KeyboardInterrupt:
        _fail("interrupted; what was journalled is kept: zotune resume RUN goes on", code=130)
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse(arguments: list[str]) -> Any:
    """The command of a command line, with its options."""
    base = Train()
    if arguments[:1] == ["train"] and len(arguments) > 1 and not arguments[1].startswith("-"):
        config = read_toml(Path(arguments.pop(1)))
        base = Train(**{field.name: getattr(config, field.name) for field in fields(Config)})
    options, arguments = parse_flags(arguments)
    commands: Any = Union[tuple(_subcommand(name, base if name == "train" else None) for name in COMMANDS)]  # noqa: UP007
    style = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)
    command = tyro.cli(commands, args=arguments, prog="zotune", description=zotune.__doc__, config=style)
    if not options:
        return command
    if not hasattr(command, "sglang"):
        raise InputError(f"--sglang.{next(iter(options))}: {type(command).__name__.lower()} takes no options of SGLang")
    return replace(command, sglang={**command.sglang, **options})


def _subcommand(name: str, default: Any) -> Any:
    command = COMMANDS[name]
    options = {} if default is None else {"default": default}
    return Annotated[command, tyro.conf.subcommand(name, description=command.__doc__, **options)]


def _fail(message: object, code: int) -> None:
    print(f"zotune: {message}", file=sys.stderr)
    raise SystemExit(code)
