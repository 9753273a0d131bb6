"""The entry point by which SGLang's server takes jobs: nothing happens where nobody asked for them.

An operator asks by `--zotune-jobs DIR` on the server's command line, or by the environment variable ZOTUNE_JOBS.
"""

import argparse
import asyncio
import hashlib
import logging
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from zotune.engine.sglang.live import served
from zotune.engine.sglang.live.arrival import DEFAULT_SHARE, SHARE, SLOTS, SOCKET, usage_file
from zotune.engine.sglang.names import check
from zotune.errors import InputError
from zotune.sglang_names import announce

JOBS, DATA = "ZOTUNE_JOBS", "ZOTUNE_DATA"
_HTTP = "sglang.srt.entrypoints.http_server:"
ARGUMENTS = "sglang.srt.server_args:prepare_server_args"
RUN = _HTTP + "_setup_and_run_http_server"
NAMED = "sglang.srt.entrypoints.openai.serving_base:OpenAIServingBase._parse_model_parameter"
NAMES = (ARGUMENTS, NAMED, "sglang.srt.utils.auth:auth_level", *served.NAMES)
ONE_OF_EACH = ("tokenizer_worker_num", "dp_size", "pp_size", "nnodes")
"""What there may be only one of: one process answers the routes, and jobs train on one scheduler."""

MAX_SOCKET_PATH = 100  # what the system takes

logger = logging.getLogger("zotune")
_served: served.Served | None = None  # in the process that answers


def register() -> None:
    """Named in pyproject.toml, under sglang.srt.plugins."""
    try:
        check()
    except InputError:
        return  # the other plugin says so
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    announce()
    HookRegistry.register(ARGUMENTS.replace(":", "."), _arguments, HookType.AROUND)
    if os.environ.get(JOBS):
        _open()


def _arguments(original: Any, words: list[str]) -> Any:
    """Take zotune's options off the server's command line, and pass them on to its processes by their environment."""
    parser = argparse.ArgumentParser(prog="sglang serve", add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("zotune")
    group.add_argument(
        "--zotune-jobs", metavar="DIR", help="take training jobs over HTTP, and keep them in this folder"
    )
    group.add_argument(
        "--zotune-data", metavar="DIR", help="where the paths of jobs must be (by default, data in that folder)"
    )
    group.add_argument(
        "--zotune-share", type=_share, metavar="SHARE",
        help=f"of the time in which users' requests are there, training has at most so much (default {DEFAULT_SHARE})",
    )  # fmt: skip
    group.add_argument("--zotune-slots", type=int, metavar="N", help="LoRA slots that training may take (half of them)")
    if "--help" in words or "-h" in words:
        parser.print_help()
    given, rest = parser.parse_known_args(words)
    for variable, value in ((JOBS, given.zotune_jobs), (DATA, given.zotune_data), (SHARE, given.zotune_share),
                            (SLOTS, given.zotune_slots)):  # fmt: skip
        if value is not None:
            os.environ[variable] = str(value)
    if given.zotune_jobs is not None:
        _open()
    arguments = original(rest)
    if os.environ.get(JOBS):
        for name in ONE_OF_EACH:
            if (count := getattr(arguments, name)) > 1:
                parser.error(
                    f"--zotune-jobs does not go with --{name.replace('_', '-')} {count}: jobs need one of those"
                )
    return arguments


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("must be between 0 and 1")
    return value


def _open() -> None:
    """Have the server's processes let training in, and its port take jobs."""
    if SOCKET in os.environ:
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    check(NAMES)
    folder = Path(os.environ[JOBS]).absolute()
    os.environ[JOBS] = str(folder)
    os.environ[SOCKET] = str(socket_path(folder))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    HookRegistry.register(RUN.replace(":", "."), _with_jobs, HookType.AROUND)
    HookRegistry.register(NAMED.replace(":", "."), _adapter_of, HookType.AROUND)
    HookRegistry.apply_hooks()


def socket_path(folder: Path) -> Path:
    """In the folder; where that is too long a path for a socket, under a name made from it."""
    path = folder / "engine.sock"
    if len(str(path).encode()) <= MAX_SOCKET_PATH:
        return path
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"zotune-{os.getuid()}-{digest}.sock"


def _adapter_of(original: Any, serving: Any, model: str) -> Any:
    """A job's name is a model's name, too, where SGLang has BASE:NAME alone."""
    if _served is not None and model in _served:
        return serving.tokenizer_manager.served_model_name, model
    return original(serving, model)


def _with_jobs(original: Any, server_args: Any, tokenizer_manager: Any, *args: Any, **kwargs: Any) -> Any:
    from sglang.srt.entrypoints.http_server import app
    from sglang.srt.utils.auth import AuthLevel, auth_level

    from zotune.jobs.routes import make_router
    from zotune.jobs.supervisor import Supervisor

    folder = Path(os.environ[JOBS])
    data = Path(os.environ.get(DATA) or folder / "data")
    model, dtype = str(server_args.model_path), str(tokenizer_manager.model_config.dtype).removeprefix("torch.")
    fixed = {"model": model, "dtype": dtype, "engine": "sglang"}
    global _served
    adapters = _served = served.Served(tokenizer_manager)
    socket = os.environ[SOCKET]
    supervisor = Supervisor(
        folder / "jobs", {SOCKET: socket}, fixed, adapters.serve, adapters.withdraw, usage_file(Path(socket))
    )
    app.include_router(make_router(supervisor, model, dtype, data, auth_level(AuthLevel.ADMIN_OPTIONAL)))
    original_lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(of: Any) -> AsyncIterator[Any]:
        async with original_lifespan(of) as state:
            task = asyncio.create_task(supervisor.run())
            try:
                yield state
            finally:
                task.cancel()
                await asyncio.to_thread(supervisor.close)

    app.router.lifespan_context = lifespan
    logger.info("zotune takes training jobs at /zotune/jobs, and keeps them in %s", folder)
    return original(server_args, tokenizer_manager, *args, **kwargs)
