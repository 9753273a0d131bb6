"""One process with one reward function, which may hang or die without harm: it is ended, and started again.

Every wait for it has an end. What runs in it is `worker.serve`.
"""

import os
import signal
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from zotune.rewards.calling import Problem, Values

LOADING_S = 300.0
"""How long a function may take to be loaded: its module may read a model."""

ENDING_S = 5.0
"""How long a process that has closed its socket may take to end."""

CODE = "import sys; sys.path[:] = {path!r}; from zotune.rewards.worker import serve; serve({socket}, {lifeline})"


class RewardProcess:
    """The function in another process.

    Args:
        portable: what it is loaded by, see `functions.Source`.
        timeout_s: how long a call may take; None: as long as it likes.
    """

    def __init__(self, portable: str | bytes, timeout_s: float | None) -> None:
        self._portable, self._timeout_s = portable, timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Have the function loaded, where no process has it; `ready` waits for that."""
        if self._process is not None:
            return
        ours, theirs = socket.socketpair()
        watched, self._lifeline = os.pipe()
        code = CODE.format(path=sys.path, socket=theirs.fileno(), lifeline=watched)
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-P", "-c", code], pass_fds=(theirs.fileno(), watched), stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us alone, and what the function starts can be ended with it
        )  # fmt: skip
        theirs.close()
        os.close(watched)
        # A large message to a process that is stopped must not hold us.
        limit = struct.pack("ll", int(LOADING_S if self._timeout_s is None else self._timeout_s) + 1, 0)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._connection = Connection(ours.detach())
        self._is_ready = False
        with suppress(OSError):  # `ready` says why it is gone
            self._connection.send((self._portable, self._timeout_s))

    def ready(self) -> Problem | None:
        """Wait until the function is loaded; what stands in the way, if anything does."""
        self.start()
        if not self._is_ready:
            answer = self._receive(LOADING_S, f"was not loaded within {LOADING_S:g} s")
            if isinstance(answer, Problem):
                self.end()
                return answer
            self._is_ready = True
        return None

    def send(self, message: bytes) -> None:
        """Ask for the rewards of a pickled pair of arguments and number of records; the process must be ready."""
        with suppress(OSError):  # `receive` says why it is gone
            self._connection.send_bytes(message)

    def receive(self) -> Values | Problem:
        """What came of it."""
        answer: Values | Problem = self._receive(
            self._timeout_s, f"gave no answer within {self._timeout_s} s, the limit of reward_timeout_s"
        )
        return answer

    @property
    def has_answered(self) -> bool:
        """Whether `receive` need not wait."""
        try:
            return self._connection.poll(0)
        except OSError:  # it was ended meanwhile
            return True

    def end(self) -> None:
        """End the process and those that it has started."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        self._connection.close()
        os.close(self._lifeline)

    def _receive(self, limit_s: float | None, late: str) -> Any:
        try:
            if self._connection.poll(limit_s):
                return self._connection.recv()
            self.end()
            return Problem(late)
        except (EOFError, OSError):
            how = self._ending()
            self.end()
            return Problem(how)

    def _ending(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            return "closed the connection to its process"
        if code < 0:
            return f"lost its process, which was ended by {signal.Signals(-code).name}"
        return f"lost its process, which ended with exit code {code}"
