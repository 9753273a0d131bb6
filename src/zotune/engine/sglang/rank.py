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
from types import GeneratorType

from zotune.engine.sglang import driven, driver, lens_gradient, models, slots
from zotune.engine.sglang.jobs import finished
from zotune.engine.sglang.names import check
from zotune.engine.sglang.plugin import cpu, cpu_attention, opt
from zotune.engine.sglang.rank_start import RankStart, mapped_theta
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


def _worker(start: RankStart, theta_file: int) -> Worker:
    check((*cpu.NAMES, *cpu_attention.NAMES, *opt.NAMES, *driver.NAMES, *driven.NAMES, *slots.NAMES, *models.NAMES,
           *lens_gradient.NAMES))  # fmt: skip
    lora_ids = [f"zotune-{index}" for index in range(start.num_slots)]
    own = driver.Driver(driven.own_scheduler(start.options, start.rank, start.port), lora_ids or [None])
    own.runner.sampler = own.sampler
    return Worker(own, start.spec, start.shapes, mapped_theta(theta_file, start.shapes, writable=False))


def main() -> None:
    """Started by the engine as `python -m zotune.engine.sglang.rank COMMANDS LIFELINE THETA`, three open files."""
    commands, lifeline, theta_file = map(int, sys.argv[1:4])
    connection = Connection(commands)
    start: RankStart = connection.recv()
    _end_with_parent(lifeline, start.parent)
    faulthandler.register(signal.SIGUSR1)  # kill -USR1 writes where every thread is to the log
    try:
        worker = _worker(start, theta_file)
        connection.send(("ok", {"capacity": worker.driver.capacity}))
        while True:
            method, arguments = connection.recv()
            result = getattr(worker, method)(*arguments)
            if isinstance(result, GeneratorType):
                result = finished(result)
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
