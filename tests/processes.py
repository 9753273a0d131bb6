"""Commands in processes of their own, which can be killed and fill disks, without the seconds that libraries take.

They are forked from a process that has imported the libraries and has done nothing else; each imports zotune itself.
That the installed command starts is for other tests to show.
"""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.warm"])


class Process:
    """A process that is running: the command `zotune` with its arguments, or Python code that has them in sys.argv."""

    def __init__(self, *arguments: str | Path, code: str | None = None, cwd: Path | None = None) -> None:
        self._said = [Path(_new_file()), Path(_new_file())]
        start = (code, [str(argument) for argument in arguments], cwd or Path.cwd(), self._said)
        self._process = FORKS.Process(target=_child, args=start, daemon=True)
        self._process.start()
        assert self._process.pid
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """`returncode`, as it is now."""
        return self.returncode

    @property
    def returncode(self) -> int | None:
        """Its exit code, or minus the number of the signal that ended it; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout_s: float = 240) -> int:
        """The exit code, once there is one."""
        self._process.join(timeout_s)
        code = self.poll()
        assert code is not None, f"still running after {timeout_s} s:\n{self.stderr}"
        return code

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self.wait()

    @property
    def stdout(self) -> str:
        """What it has written there so far."""
        return self._said[0].read_text()

    @property
    def stderr(self) -> str:
        """What it has written there so far."""
        return self._said[1].read_text()


def run_to_end(*arguments: str | Path, code: str | None = None, cwd: Path | None = None) -> Process:
    """A process that has ended, whichever way."""
    process = Process(*arguments, code=code, cwd=cwd)
    process.wait()
    return process


def _new_file() -> str:
    number, path = tempfile.mkstemp(prefix="zotune-test-")
    os.close(number)
    return path


def _child(code: str | None, arguments: list[str], cwd: Path, said: Sequence[Path]) -> None:
    for stream, path in zip((sys.stdout, sys.stderr), said, strict=True):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, stream.fileno())
        os.close(file)
    os.chdir(cwd)
    multiprocessing.current_process().daemon = False  # it ends with the tests, and may have children all the same
    if code is not None:
        sys.argv = ["-c", *arguments]
        exec(compile(code, "-c", "exec"), {"__name__": "__main__"})
    else:
        from zotune.cli import main

        main(arguments)
