"""The process that runs a reward function: it loads it by its name, answers calls, and ends with its parent.

It is a fresh Python, and not a fork: the parent may hold threads, a GPU and a script that must not run twice. What it
is asked comes over a socket; it lives as long as the parent holds the other end of a pipe.
"""

import faulthandler
import os
import pickle
import select
import signal
import threading
from multiprocessing.connection import Connection
from pathlib import Path

from zotune.errors import InputError, first_line
from zotune.rewards.calling import Caller, Problem
from zotune.rewards.functions import load

GRACE_S = 5.0
"""How long after its time a call is left to the parent to end, before the process ends itself."""


def serve(socket: int, lifeline: int) -> None:
    """Load the function and answer until the other end is closed; both arguments are open files."""
    connection = Connection(socket)
    threading.Thread(target=_end_with_parent, args=(lifeline, os.getppid()), daemon=True).start()
    portable, timeout_s = connection.recv()
    try:
        caller = Caller(load(portable))
    except InputError as error:
        connection.send(Problem(str(error)))
        return
    connection.send(None)
    with Path(os.devnull).open("w") as nowhere:
        while True:
            try:
                message = connection.recv_bytes()
            except EOFError:
                break
            try:
                arguments, count = pickle.loads(message)
            except Exception as error:  # whatever the objects in the data raise
                text = f"cannot have the data in another process: {type(error).__name__}: {first_line(error)}"
                connection.send(Problem(text, 0))
                continue
            if timeout_s is not None:  # also ends what never lets another thread run, where the parent was killed
                faulthandler.dump_traceback_later(timeout_s + GRACE_S, file=nowhere, exit=True)
            answer = caller(arguments, count)
            faulthandler.cancel_dump_traceback_later()
            connection.send(answer)
    os._exit(0)  # threads that the user's code has left do not keep it


def _end_with_parent(lifeline: int, parent: int) -> None:
    """End this process, and those that it has started, when the other end of the pipe closes.

    A fork of the parent may hold that open, so who the parent is counts as well.
    """
    while os.getppid() == parent and not select.select([lifeline], [], [], 1.0)[0]:
        pass
    os.killpg(os.getpgid(0), signal.SIGKILL)
