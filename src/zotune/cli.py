"""The command `zotune`: the name of a command and its flags -> that command.

Exit code 2: what was asked for cannot be done; 1: training had to stop. Only what a command needs is imported.
"""

import difflib
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from zotune.commands.names import COMMANDS
from zotune.errors import InputError, TrainingError
from zotune.values import text_of

REFUSED_BY_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console command."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _open_streams()
    try:
        _check_words(arguments)
        if _answered(arguments):
            sys.stdout.flush()
            raise SystemExit(0)
        parse(arguments).run()
        sys.stdout.flush()
    except InputError as error:
        _fail(error, code=2)
    except TrainingError as error:
        _fail(error, code=1)
    except KeyboardInterrupt:
        _fail("interrupted; what was journalled is kept: zotune resume RUN goes on", code=130)
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        _discard_output()
    except OSError as error:
        if error.filename is not None and error.errno in REFUSED_BY_DISK:
            _fail(f"cannot write {error.filename}: {error.strerror}", code=1)
        if not _is_about_output(error):
            raise
        _discard_output()
        _fail(f"cannot write to standard output: {error.strerror}", code=1)


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
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{what}" for name, (_, _, what) in COMMANDS.items()]
    import zotune

    return "\n".join([
        "usage: zotune COMMAND [OPTIONS]", "", str(zotune.__doc__), "", "commands:", *lines, "",
        "zotune COMMAND --help says what a command takes.",
    ])  # fmt: skip


def _open_streams() -> None:
    """Lead a standard stream that is closed, as by `>&-`, to nowhere: no file that is opened may take its number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, os.fdopen(number, mode))


def _check_words(words: Sequence[str]) -> None:
    """Refuse what is not UTF-8, by the option that it stands behind."""
    option = "the command line"
    for word in words:
        option = word.partition("=")[0] if word.startswith("--") else option
        text_of(word, option if option.isascii() else "the command line")


def _is_about_output(error: OSError) -> bool:
    """Whether standard output refused: the errors of files have names."""
    return error.filename is None and error.errno in (errno.ENOSPC, errno.EIO, errno.EBADF)


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    printable = "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(message))
    print(f"zotune: {printable}", file=sys.stderr)
    raise SystemExit(code)
