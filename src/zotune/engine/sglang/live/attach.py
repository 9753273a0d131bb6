"""Training on an `sgl.Engine` that already runs in this Python process."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zotune.engine.sglang.live.arrival import DEFAULT_SHARE, SOCKET
from zotune.engine.sglang.names import check

NAMES = ("sglang.srt.entrypoints.engine:Engine.collective_rpc",)


@contextmanager
def attach(engine: Any, share: float = DEFAULT_SHARE, slots: int | None = None) -> Iterator[None]:
    """Inside, `--engine sglang` is this engine: no model is loaded, and it goes on answering.

    Args:
        engine: an `sgl.Engine`, started with `enable_lora=True`, `max_lora_rank` and `lora_target_modules`.
        share: of the time in which other requests are there, training has at most so much.
        slots: LoRA slots that training may take. Default: half of them.

    Raises:
        InputError: SGLang is another version than zotune works with.
    """
    check(NAMES)
    folder = tempfile.mkdtemp(prefix="zotune-")  # it alone may be entered by this user alone
    path = str(Path(folder) / "engine.sock")
    engine.collective_rpc("zotune_open", path=path, share=share, slots=slots)
    before = os.environ.get(SOCKET)
    os.environ[SOCKET] = path
    try:
        yield
    finally:
        engine.collective_rpc("zotune_close")
        if before is None:
            del os.environ[SOCKET]
        else:
            os.environ[SOCKET] = before
        Path(folder).rmdir()
