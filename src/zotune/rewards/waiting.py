"""Says how far a call of rewards is that takes long."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FIRST_S = 10.0
"""A call that takes no longer is not spoken of."""

EVERY_S = 30.0
"""How often the others are."""

logger = logging.getLogger("zotune")


@contextmanager
def said_when_slow(count: int, progress: Callable[[], tuple[int, int]]) -> Iterator[None]:
    """Inside, the log says now and then how many of the processes have answered.

    Args:
        count: of the records that are asked for.
        progress: how many have answered, of how many.
    """
    done = threading.Event()

    def say() -> None:
        began, wait_s = time.monotonic(), FIRST_S
        while not done.wait(wait_s):
            answered, asked = progress()
            logger.info(
                "rewards of %d records: %d of %d processes have answered after %.0f s", count, answered, asked,
                time.monotonic() - began,
            )  # fmt: skip
            wait_s = EVERY_S

    speaker = threading.Thread(target=say, name="zotune-rewards", daemon=True)
    speaker.start()
    try:
        yield
    finally:
        done.set()
        speaker.join()
