"""A server's scheduler as the trainer's process holds it: in the place of the ranks that an engine starts itself."""

import contextlib
import time
from multiprocessing.connection import Client, Connection
from typing import Any

from zotune.errors import InputError

CONNECT_LIMIT_S = 60.0


class ServerRank:
    """All ranks of the server behind the socket at `path`.

    Raises:
        InputError: no server listens there.
    """

    def __init__(self, path: str) -> None:
        self.connection: Connection = _connect(path)

    def send(self, message: object) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `receive` says that it is gone
            self.connection.send(message)

    def receive(self) -> tuple[str, Any]:
        try:
            answer: tuple[str, Any] = self.connection.recv()
            return answer
        except (EOFError, ConnectionResetError):
            return "failed", "the server has gone"

    def log(self) -> str:
        return "see the server's own log"

    def end(self) -> None:
        self.connection.close()


def _connect(path: str) -> Connection:
    end = time.monotonic() + CONNECT_LIMIT_S
    while True:
        try:
            return Client(path, "AF_UNIX")
        except (FileNotFoundError, ConnectionRefusedError) as error:
            if time.monotonic() > end:
                raise InputError(f"no SGLang server with zotune listens at {path} ({error.strerror})") from error
            time.sleep(0.5)
