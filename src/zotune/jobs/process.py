"""The process that trains a job: an ordinary `zotune train` or `zotune resume`, whose engine is the server."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress

import psutil

from zotune.jobs.folder import JobFolder

NICENESS = 10  # what it computes itself can wait for the server's work


def start(job: JobFolder, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Begin the job's run, or go on with it; what it says goes into the job's log."""
    words = ["resume", str(job.run.path)] if job.has_begun else ["train", str(job.path / "settings.toml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **environment}
    with job.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", f"import os; os.nice({NICENESS}); from zotune.cli import main; main()", *words],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=job.path,
        )  # fmt: skip
    with suppress(psutil.Error):
        job.change(process=(process.pid, psutil.Process(process.pid).create_time()))
    return process


def interrupt(process: subprocess.Popen[bytes], patience_s: float = 10.0) -> None:
    """End it between two steps where it can; what is journalled is kept however it ends."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def end_orphan(job: JobFolder) -> None:
    """End what trains the job on behalf of a server that was killed: two would want the same run folder."""
    if job.state.process is None:
        return
    number, began = job.state.process
    with suppress(psutil.Error):
        process = psutil.Process(number)
        if abs(process.create_time() - began) < 1.0:
            process.kill()
            process.wait(10)


def last_words(job: JobFolder, before: int) -> str:
    """The last line that it wrote, behind so many bytes of the log, which others wrote."""
    try:
        lines = job.log.read_bytes()[before:].decode(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    said = [line for line in lines if line.startswith("zotune: ")] or lines
    return said[-1].removeprefix("zotune: ") if said else "it ended without a word"
