"""Keeps jobs going: one trains at a time, in the order in which they came; those of a server that was killed go on."""

import asyncio
import json
import logging
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from zotune.errors import InputError
from zotune.files import replace_folder
from zotune.jobs import process
from zotune.jobs.folder import Events, JobFolder, described
from zotune.jobs.request import JobRequest

MAX_WAITING = 64
MAX_DEATHS = 3  # of a job's process in a row, without a step in between
PERIOD_S = 0.25
logger = logging.getLogger("zotune")

Serve = Callable[[str, int, Path], Awaitable[None]]
"""Let a server answer by the adapter in a folder, of a step of the job with that name."""
Withdraw = Callable[[str], Awaitable[None]]


class Conflict(InputError):
    """What is asked for does not go with the state that the job is in."""


class NoSuchJob(InputError):
    """A name that no job has."""


class Supervisor:
    """All jobs of one server.

    Args:
        folder: of the jobs, each in a folder of its name.
        environment: of the processes that train: by it their engine finds the server.
        fixed: settings that are the server's.
        usage: the file in which the scheduler says what training has had of it.
    """

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        fixed: Mapping[str, Any],
        serve: Serve,
        withdraw: Withdraw,
        usage: Path | None = None,
    ) -> None:
        self.folder, self.environment, self.fixed = folder, environment, fixed
        self.serve, self.withdraw, self.usage = serve, withdraw, usage
        folder.mkdir(parents=True, exist_ok=True)
        found = [job for path in sorted(folder.iterdir()) if path.is_dir() and (job := JobFolder.open(path))]
        found.sort(key=lambda job: job.state.created)
        self.jobs = {job.state.name: job for job in found}
        self.events = {name: Events(job.run.metrics) for name, job in self.jobs.items()}
        self._running: tuple[JobFolder, subprocess.Popen[bytes]] | None = None
        self._deaths = 0
        self._step = self._said = 0  # the step, and the size of the log, when the running job's process began

    # ---- what owners ask for -----------------------------------------------------------------------------------------

    def job(self, name: str) -> JobFolder:
        """Raises NoSuchJob."""
        if name not in self.jobs:
            raise NoSuchJob(f"there is no job {name}")
        return self.jobs[name]

    def submit(self, request: JobRequest) -> JobFolder:
        if request.name in self.jobs or (self.folder / request.name).exists():
            raise Conflict(f"name: there is a job {request.name} already; choose another")
        if sum(self.state(job) in ("queued", "running", "paused") for job in self.jobs.values()) >= MAX_WAITING:
            raise Conflict(f"{MAX_WAITING} jobs wait already; cancel some, or come again later")
        job = JobFolder.create(self.folder / request.name, request, self.fixed)
        self.jobs[request.name], self.events[request.name] = job, Events(job.run.metrics)
        return job

    def state(self, job: JobFolder) -> str:
        trains = self._running is not None and self._running[0] is job
        if job.is_finished and not trains:  # and its last adapter is served
            return "finished"
        if job.state.error is not None:
            return "failed"
        if job.state.wanted != "running":
            return job.state.wanted
        return "running" if trains else "queued"

    def describe(self, name: str) -> dict[str, Any]:
        job = self.job(name)
        self.events[name].update()
        state = self.state(job)
        return {
            **described(job, state, self.events[name]),
            "engine_share": self._share() if state == "running" else None,
        }

    def _share(self) -> float | None:
        """What part of the scheduler's time training has had of late."""
        try:
            found: float | None = json.loads(self.usage.read_text())["share"] if self.usage else None
            return found
        except (OSError, ValueError, KeyError):
            return None

    def pause(self, name: str) -> None:
        self._want(name, "paused", ("running", "queued"))

    def resume(self, name: str) -> None:
        self._want(name, "running", ("paused", "failed"))
        self.job(name).change(error=None)

    def cancel(self, name: str) -> None:
        self._want(name, "cancelled", ("running", "queued", "paused", "failed"))
        self.job(name).change(error=None)

    def _want(self, name: str, wanted: str, states: tuple[str, ...]) -> None:
        job = self.job(name)
        if (state := self.state(job)) not in states:
            raise Conflict(f"job {name} is {state}")
        job.change(wanted=wanted)

    # ---- what keeps them going -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until it is cancelled."""
        for job in self.jobs.values():
            process.end_orphan(job)
            if job.state.served is not None and job.state.wanted != "cancelled":
                await self._serve(job, job.state.served, anew=True)
        while True:
            try:
                await self._look()
            except Exception:  # of one job; the others go on
                logger.exception("zotune's jobs")
            await asyncio.sleep(PERIOD_S)

    def close(self) -> None:
        """End what runs; it goes on when the server starts again."""
        if self._running is not None:
            process.interrupt(self._running[1])

    async def _look(self) -> None:
        if self._running is not None:
            job, running = self._running
            if job.state.wanted != "running" and running.poll() is None:
                await asyncio.to_thread(process.interrupt, running)
            ended = running.poll() is not None  # before its last words are read
            await self._serve_last(job)
            if ended:
                self._running = None
                self._ended(job, running.returncode)
                if job.state.wanted == "cancelled":
                    await self.withdraw(job.state.name)
        if self._running is None:
            waiting = (job for job in self.jobs.values() if self.state(job) == "queued")
            if (first := next(waiting, None)) is not None:
                self._step = self._last_step(first)
                self._said = first.log.stat().st_size if first.log.exists() else 0
                self._running = first, process.start(first, self.environment)

    def _ended(self, job: JobFolder, code: int) -> None:
        job.change(process=None)
        if job.is_finished or job.state.wanted != "running":
            self._deaths = 0
            return
        self._deaths = 0 if self._last_step(job) > self._step else self._deaths + 1
        if code in (0, 1, 2) or self._deaths >= MAX_DEATHS:  # it said why; another end is a death
            job.change(error=process.last_words(job, self._said))
            self._deaths = 0

    def _last_step(self, job: JobFolder) -> int:
        events = self.events[job.state.name]
        events.update()
        last = events.last("step")
        return last["step"] if last else 0

    async def _serve_last(self, job: JobFolder) -> None:
        """Serve the adapter of the last evaluation."""
        events = self.events[job.state.name]
        events.update()
        last = events.last("eval")
        if last is None or (job.state.served is not None and job.state.served >= last["step"]):
            return
        if job.run.adapter.is_dir() and job.state.wanted != "cancelled":
            await self._serve(job, last["step"])

    async def _serve(self, job: JobFolder, step: int, anew: bool = False) -> None:
        """From a copy: the run goes on, and writes its own anew."""
        copy = job.path / "served" / str(step)
        if not anew:
            replace_folder(copy, lambda folder: shutil.copytree(job.run.adapter, folder, dirs_exist_ok=True))
        try:
            await self.serve(job.state.name, step, copy)
        except InputError as error:
            logger.warning("job %s: its adapter is not served: %s", job.state.name, error)
        job.change(served=step)
        for older in (job.path / "served").iterdir():
            if older != copy:
                await asyncio.to_thread(shutil.rmtree, older, ignore_errors=True)
