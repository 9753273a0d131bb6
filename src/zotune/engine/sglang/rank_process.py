"""A rank's process as the trainer's process holds it: the pipe to it, its log, and the line that it lives by.

The process ends when that line closes, so none is left behind however the trainer ends.
"""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import IO, Any

from zotune.engine.sglang.rank_start import RankStart


class RankProcess:
    """A process of one rank, and our ends of its pipes."""

    def __init__(self, start: RankStart, theta_file: int, environment: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        watched, self._lifeline = os.pipe()
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        settings = {
            "SGLANG_USE_MESSAGE_QUEUE_BROADCASTER": "0",  # shared memory that nothing here uses
            "TOKENIZERS_PARALLELISM": "false",
            **environment,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "zotune.engine.sglang.rank",
             str(theirs.fileno()), str(watched), str(theta_file)],
            pass_fds=(theirs.fileno(), watched, theta_file), env={**os.environ, **settings},
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        theirs.close()
        os.close(watched)
        self.connection = Connection(ours.detach())
        self.send(start)

    def send(self, message: object) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # `receive` says why it is gone
            self.connection.send(message)

    def receive(self) -> tuple[str, Any]:
        try:
            answer: tuple[str, Any] = self.connection.recv()
            return answer
        except (EOFError, ConnectionResetError):
            code = self._process.wait()
            lines = [line for line in self.log().splitlines() if line.strip()]
            return "failed", f"it ended with code {code}; its last words: {lines[-1] if lines else 'none'}"

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def end(self) -> None:
        self.connection.close()
        os.close(self._lifeline)
        self._process.kill()
        self._process.wait()
        self._log.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
