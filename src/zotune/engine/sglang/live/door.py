"""Where an engine in another process comes in: a socket of this machine, which only its user may open.

What crosses it are commands and their answers, one after the other, as between the trainer and an own rank; one engine
at a time. A thread listens, so that the scheduler only has to look into a queue.
"""

import contextlib
import json
import os
import queue
import threading
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from zotune.engine.sglang.live.arrival import usage_file

LEFT = ("leave", ())
"""The engine has gone."""


class Door:
    """Of the first rank."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._commands: queue.SimpleQueue[tuple[str, tuple[Any, ...]]] = queue.SimpleQueue()
        with contextlib.suppress(FileNotFoundError):
            path.unlink()  # of a server that was killed
        mask = os.umask(0o177)
        try:
            self._listener = Listener(str(path), "AF_UNIX")
        finally:
            os.umask(mask)
        self._inside: Connection | None = None
        self._free = threading.Event()
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # readable where a command has come in
        threading.Thread(target=self._listen, name="zotune-door", daemon=True).start()

    def answer(self, kind: str, value: Any) -> None:
        """To the last command."""
        if self._inside is not None:
            with contextlib.suppress(OSError):  # it has gone; the queue says so
                self._inside.send((kind, value))

    def next(self) -> tuple[str, tuple[Any, ...]] | None:
        """The next command, if there is one: a method's name and its arguments."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.bell)
        if self._commands.empty():
            return None
        command = self._commands.get()
        if not self._commands.empty():
            os.eventfd_write(self.bell, 1)
        return command

    def tell(self, usage: dict[str, float]) -> None:
        """Whoever looks after jobs reads it beside the socket."""
        path = usage_file(self.path)
        new = path.with_suffix(".new")
        with contextlib.suppress(OSError):
            new.write_text(json.dumps(usage))
            new.replace(path)

    def closed(self) -> None:
        """All is put away that the last engine had; the next may come in."""
        self._free.set()

    def close(self) -> None:
        self._listener.close()
        for path in (self.path, usage_file(self.path)):
            path.unlink(missing_ok=True)

    def _listen(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except OSError:
                return
            self._inside = connection
            with contextlib.suppress(EOFError, OSError):
                while True:
                    self._ring(connection.recv())
            self._free.clear()
            self._ring(LEFT)
            self._free.wait()
            self._inside = None
            connection.close()

    def _ring(self, command: tuple[str, tuple[Any, ...]]) -> None:
        self._commands.put(command)
        os.eventfd_write(self.bell, 1)
