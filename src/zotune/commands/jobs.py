"""Training jobs in a running SGLang server: submit one, and look after those that are there."""

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from zotune.commands.training import Train
from zotune.config.reading import make_config
from zotune.config.settings import Config
from zotune.errors import InputError
from zotune.jobs.client import DEFAULT_SERVER, JobsClient
from zotune.jobs.request import RECORDS

KEY = "ZOTUNE_API_KEY"


@dataclass(frozen=True)
class Submit(Train):
    """Train in a running SGLang server that takes jobs (--zotune-jobs). Settings are those of zotune train; data in
    a file of this machine is sent along."""

    server: str = DEFAULT_SERVER
    """Address of the server."""

    api_key: str | None = None
    """The server's admin key, or its key where it has only that. Default: the environment variable ZOTUNE_API_KEY."""

    name: str | None = None
    """Name of the job, and of the adapter by which the server answers. Default: the server chooses."""

    stream: bool = False
    """Go on learning from records that come in while the job runs: zotune jobs records NAME FILE."""

    def run(self) -> None:
        make_config({item.name: getattr(self, item.name) for item in fields(Config)})
        body = settings_to_send(self)
        job = client(self.server, self.api_key).submit(**body)
        print(f"{job['name']}: {job['state']}")
        print(f"zotune jobs metrics {job['name']} --server {self.server} follows it")


@dataclass(frozen=True)
class Jobs:
    """Look after training jobs in a running SGLang server."""

    action: Annotated[
        tyro.conf.Positional[Literal["list", "show", "metrics", "pause", "resume", "cancel", "adapter", "records"]],
        tyro.conf.arg(metavar="ACTION"),
    ] = "list"
    """list, show, metrics (follow one), pause, resume, cancel, adapter (fetch it), records (give it more to learn)."""

    job: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """The job."""

    file: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Of records, or a folder for the adapter. Default for an adapter: NAME."""

    server: str = DEFAULT_SERVER
    """Address of the server."""

    api_key: str | None = None
    """The server's admin key, or its key where it has only that. Default: the environment variable ZOTUNE_API_KEY."""

    best: bool = False
    """Of adapters, that of the evaluation with the lowest loss, not the last one."""

    def run(self) -> None:
        found = client(self.server, self.api_key)
        if self.action == "list":
            for one in found.jobs():
                print(line(one))
            return
        if self.job is None:
            raise InputError(f"NAME: which job? zotune jobs {self.action} NAME")
        if self.action == "show":
            print(json.dumps(found.job(self.job), indent=2))
        elif self.action == "metrics":
            for event in found.metrics(self.job):
                print(json.dumps(event), flush=True)
        elif self.action == "adapter":
            print(found.adapter(self.job, self.file or self.job, self.best))
        elif self.action == "records":
            if self.file is None:
                raise InputError(f"FILE: which records? zotune jobs records {self.job} FILE")
            print(f"{found.add_records(self.job, rows(self.file, 'FILE'))} records")
        else:
            print(line(getattr(found, self.action)(self.job)))


def client(server: str, api_key: str | None) -> JobsClient:
    return JobsClient(server, api_key or os.environ.get(KEY))


def settings_to_send(submit: Submit) -> dict[str, Any]:
    """What was asked for: settings that differ from their defaults, and the records of files that are here."""
    defaults = Config()
    asked = {
        item.name: value
        for item in fields(Config)
        if item.name != "tables" and (value := getattr(submit, item.name)) != getattr(defaults, item.name)
    }
    own = {"name": submit.name, "stream": submit.stream or None}
    body = {**asked, **submit.tables, **{name: value for name, value in own.items() if value is not None}}
    for key, setting in RECORDS.items():
        if (path := body.get(setting)) is not None and Path(path).expanduser().is_file():
            body[key] = rows(body.pop(setting), f"--{setting.replace('_', '-')}")
    return body


def rows(path: str, option: str) -> list[dict[str, Any]]:
    from zotune.data.records import load_records

    return [dict(record.fields) for record in load_records(path, option)]


def line(job: dict[str, Any]) -> str:
    """A job in a line."""
    words = [f"{job['name']}: {job['state']}", f"step {job['step']}"]
    if job["loss"] is not None:
        words.append(f"loss {job['loss']:.4f}")
    if job["evaluations"] and (accuracy := job["evaluations"][-1]["accuracy"]) is not None:
        words.append(f"accuracy {100 * accuracy:.1f}%")
    if job["error"]:
        words.append(job["error"])
    return ", ".join(words)
