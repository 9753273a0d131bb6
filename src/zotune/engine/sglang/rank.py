"""One rank of the SGLang engine: the process that takes commands, and hands them to its worker.

Commands and answers come over a pipe, theta over a file in memory that both processes map. Every rank gets the same
commands and does the same; the first one answers with the numbers. A rank ends with the process that started it,
however that ends: a thread watches a pipe that nobody else holds open.
"""

import faulthandler
import os
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection

from zotune.engine.sglang.rank_start import RankStart
from zotune.engine.sglang.worker import Worker
from zotune.errors import InputError


def _end_with_parent(lifeline: int, parent: int) -> None:
    """End this process when the other end of the pipe closes, or its parent is no longer its parent."""
    import select

    def watch() -> None:
        while os.getppid() == parent:
            if select.select([lifeline], [], [], 1.0)[0] and not os.read(lifeline, 1):
                break
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Started by the engine as `python -m zotune.engine.sglang.rank COMMANDS LIFELINE THETA`, three open files."""
    commands, lifeline, theta_file = map(int, sys.argv[1:4])
    connection = Connection(commands)
    start: RankStart = connection.recv()
    _end_with_parent(lifeline, start.parent)
    faulthandler.register(signal.SIGUSR1)  # kill -USR1 writes where every thread is to the log
    try:
        worker = Worker(start, theta_file)
        connection.send(("ok", {"capacity": worker.driver.capacity}))
        while True:
            method, arguments = connection.recv()
            result = getattr(worker, method)(*arguments)
            connection.send(("ok", result if start.rank == 0 else None))
    except EOFError:
        pass  # the engine was closed
    except InputError as error:
        connection.send(("refused", str(error)))
    except BaseException as error:
        traceback.print_exc()
        connection.send(("failed", f"{type(error).__name__}: {error}"))
    sys.stderr.flush()
    os._exit(0)  # SGLang's threads and groups of ranks end with the process


if __name__ == "__main__":
    main()
