"""The command `zotune`: the name of a command and its flags -> that command.

Exit code 2: what was asked for cannot be done; 1: training had to stop. Only what a command needs is imported.
"""

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from zotune.errors import InputError, TrainingError

COMMANDS = {
    "train": ("training", "Train", "Fine-tune a model."),
    "resume": ("training", "Resume", "Go on with a run that was stopped."),
    "evaluate": ("prediction", "Evaluate", "Accuracy and loss of an adapter, or of the bare model."),
    "predict": ("prediction", "Predict", "A label or completion for each line of a file or of standard input."),
    "replay": ("runs", "Replay", "The adapter as it was after any step of a run."),
    "plot": ("runs", "Plot", "Draw one run, or several over each other."),
    "compare": ("studies", "Compare", "Train several methods on several tasks and seeds, at equal budgets."),
    "sweep": ("studies", "Sweep", "Search settings by successive halving."),
    "analyze": ("analysis", "Analyze", "Which epsilon to use on your model and data."),
    "profile": ("analysis", "Profile", "Where the time of a training step goes."),
    "tasks": ("tasks", "Tasks", "List the built-in tasks."),
}
"""Name -> file of `commands`, class in it, and what it does."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console command."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if _answered(arguments):
            raise SystemExit(0)
        parse(arguments).run()
    except InputError as error:
        _fail(error, code=2)
    except TrainingError as error:
        _fail(error, code=1)
    except KeyboardInterrupt:
        _fail("interrupted; what was journalled is kept: zotune resume RUN goes on", code=130)
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse(arguments: Sequence[str]) -> Any:
    """The command of a command line, with its options.

    Raises:
        InputError: no such command, or an option that is no more.
        SystemExit: with code 2, where the parser has said what is wrong; with 0 after --help.
    """
    if not arguments or arguments[0] not in COMMANDS:
        raise InputError(_unknown(arguments))
    from zotune.commands.options import parse_command

    file, name, _ = COMMANDS[arguments[0]]
    return parse_command(getattr(import_module(f"zotune.commands.{file}"), name), arguments[0], list(arguments[1:]))


def usage() -> str:
    """What `zotune --help` prints."""
    lines = [f"  {name:<10}{what}" for name, (_, _, what) in COMMANDS.items()]
    import zotune

    return "\n".join([
        "usage: zotune COMMAND [OPTIONS]", "", str(zotune.__doc__), "", "commands:", *lines, "",
        "zotune COMMAND --help says what a command takes.",
    ])  # fmt: skip


def _answered(arguments: list[str]) -> bool:
    """Whether the command line only asks what zotune is."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(usage())
    elif arguments[:1] == ["--version"]:
        from importlib import metadata

        print(f"zotune {metadata.version('zotune')}")
    else:
        return False
    return True


def _unknown(arguments: Sequence[str]) -> str:
    if not arguments:
        return f"name a command: {', '.join(COMMANDS)} (zotune --help)"
    close = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"there is no command {arguments[0]!r}{hint} (commands: {', '.join(COMMANDS)})"


def _fail(message: object, code: int) -> None:
    print(f"zotune: {message}", file=sys.stderr)
    raise SystemExit(code)
