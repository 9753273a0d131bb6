"""The routes of jobs on a server's own port, behind its own API key."""

import asyncio
import io
import json
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from zotune.errors import InputError
from zotune.jobs.folder import JobFolder
from zotune.jobs.request import read_request
from zotune.jobs.stream import append_records
from zotune.jobs.supervisor import Conflict, NoSuchJob, Supervisor

MAX_BODY_BYTES = 64 * 2**20
PERIOD_S = 0.25
LASTING = ("queued", "running", "paused")


def make_router(supervisor: Supervisor, model: str, dtype: str, data: Path, protect: Callable[..., Any]) -> APIRouter:
    """The routes.

    Args:
        model, dtype: the server's.
        data: the folder that paths of requests must be in.
        protect: decorates each route with what the server asks of whoever manages it.
    """
    router = APIRouter(prefix="/zotune/jobs")

    def route(method: str, path: str) -> Callable[..., Any]:
        return lambda function: router.add_api_route(path, protect(_refusing(function)), methods=[method])

    @route("POST", "")
    async def submit(request: Request) -> Response:
        body = await _body(request)
        default = f"job-{len(supervisor.jobs) + 1}"
        job = supervisor.submit(await asyncio.to_thread(read_request, body, model, dtype, data, default))
        return JSONResponse(supervisor.describe(job.state.name), status_code=201)

    @route("GET", "")
    async def all_jobs(request: Request) -> Response:
        return JSONResponse({"jobs": [supervisor.describe(name) for name in supervisor.jobs]})

    @route("GET", "/{name}")
    async def one_job(request: Request) -> Response:
        return JSONResponse(supervisor.describe(request.path_params["name"]))

    @route("POST", "/{name}/records")
    async def records(request: Request) -> Response:
        job = supervisor.job(request.path_params["name"])
        if (state := supervisor.state(job)) not in LASTING:
            raise Conflict(f"job {job.state.name} is {state}, and learns no more")
        return JSONResponse({"records": append_records(job, await _body(request))})

    @route("POST", "/{name}/{what}")
    async def change(request: Request) -> Response:
        name, what = request.path_params["name"], request.path_params["what"]
        changes = {"pause": supervisor.pause, "resume": supervisor.resume, "cancel": supervisor.cancel}
        supervisor.job(name)
        if what not in changes:
            raise NoSuchJob(f"a job has no {what}; it has {', '.join(changes)} and records")
        changes[what](name)
        return JSONResponse(supervisor.describe(name))

    @route("GET", "/{name}/metrics")
    async def metrics(request: Request) -> Response:
        job = supervisor.job(request.path_params["name"])
        return StreamingResponse(_events(supervisor, job), media_type="text/event-stream")

    @route("GET", "/{name}/adapter")
    async def adapter(request: Request) -> Response:
        job = supervisor.job(request.path_params["name"])
        best = request.query_params.get("best", "").lower() in ("1", "true", "yes")
        folder = job.run.best if best else job.run.adapter
        if not folder.is_dir():
            raise Conflict(f"job {job.state.name} has no adapter yet; there is one after its first evaluation")
        name = f"{job.state.name}.tar.gz"
        content = await asyncio.to_thread(_archive, folder, job.state.name)
        return Response(
            content, media_type="application/gzip", headers={"Content-Disposition": f"attachment; filename={name}"}
        )

    return router


async def _body(request: Request) -> Any:
    """Raises TooLarge or InputError."""
    content, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise TooLarge(
                f"the body is larger than {MAX_BODY_BYTES // 2**20} MiB; put the records into a file of the server's"
            )
        content.append(part)
    try:
        return json.loads(b"".join(content))
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is not JSON: {error}") from None


class TooLarge(InputError):
    """More than a request may bring."""


def _refusing(function: Callable[..., Any]) -> Callable[..., Any]:
    """What cannot be done as a status and one sentence."""

    async def answer(request: Request) -> Response:
        try:
            found: Response = await function(request)
            return found
        except InputError as error:
            codes = ((NoSuchJob, 404), (Conflict, 409), (TooLarge, 413))
            code = next((code for kind, code in codes if isinstance(error, kind)), 400)
            return JSONResponse({"error": {"message": str(error), "code": code}}, status_code=code)

    answer.__name__ = function.__name__
    return answer


async def _events(supervisor: Supervisor, job: JobFolder) -> AsyncIterator[str]:
    """Lines of metrics.jsonl as server-sent events; the last one says how the job ended."""
    events, sent = supervisor.events[job.state.name], 0
    while True:
        state = supervisor.state(job)
        events.update()
        sent = min(sent, len(events.lines))
        for line in events.lines[sent:]:
            yield f"event: {line.get('event', 'message')}\ndata: {json.dumps(line)}\n\n"
        sent = len(events.lines)
        if state not in LASTING:
            yield f"event: end\ndata: {json.dumps({'state': state, 'error': job.state.error})}\n\n"
            return
        await asyncio.sleep(PERIOD_S)


def _archive(folder: Path, name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(folder, arcname=name)
    return buffer.getvalue()
