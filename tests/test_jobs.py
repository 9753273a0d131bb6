"""Jobs of a server without the server: what a request may ask for, whose turn it is, and runs that are kept going."""

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.conftest import REVIEWS
from zotune import mezo_finetune
from zotune.engine.sglang.jobs import Job, Passes, finished
from zotune.engine.sglang.live.driver import LiveDriver
from zotune.engine.sglang.live.share import IDLE_MIN_TOKENS, LINGER_S, MIN_TOKENS, SAVED_S, Share
from zotune.errors import InputError
from zotune.finetune import make_trainer
from zotune.jobs.client import JobsClient
from zotune.jobs.folder import Events, JobFolder, JobState
from zotune.jobs.process import end_orphan, interrupt, start
from zotune.jobs.request import read_request
from zotune.jobs.stream import append_records
from zotune.jobs.supervisor import Conflict, NoSuchJob, Supervisor

SETTINGS: dict[str, Any] = {"invocation": " It was", "labels": ["terrible", "great"]}


# ---- whose turn it is ------------------------------------------------------------------------------------------------


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_training_has_all_the_time_without_users_and_its_share_beside_them() -> None:
    clock = Clock()
    share = Share(0.1, clock)
    clock.now += 1
    share.tick(users=False)
    assert share.may_run
    ran = 0.0
    for _ in range(10_000):  # 100 s with users all the time
        share.tick(users=True)
        step = 0.01
        if share.may_run:
            share.ran(0.02, 1, 40)
            ran += 0.02
            step += 0.02
        clock.now += step
    assert ran == pytest.approx(0.1 * share.users_s, rel=0.02)
    assert share.recent == pytest.approx(0.1, rel=0.2)
    share.tick(users=False)
    assert share.with_users, "they may come back in a moment"
    clock.now += LINGER_S + 0.01
    share.tick(users=False)
    assert share.may_run
    assert not share.with_users


def test_no_share_is_no_turn_and_little_is_saved_up() -> None:
    clock = Clock()
    none, some = Share(0.0, clock), Share(0.5, clock)
    for _ in range(100):
        clock.now += 1
        none.tick(users=True)
        some.tick(users=True)
    assert not none.may_run
    some.ran(SAVED_S, 1, 10)
    assert not some.may_run


def test_a_pass_takes_its_time_and_no_more_whatever_the_machine() -> None:
    clock = Clock()
    for tokens_a_second in (100.0, 100_000.0):
        share = Share(0.1, clock)
        for _ in range(50):
            tokens = share.most_tokens
            share.ran(tokens / tokens_a_second, 1, tokens)
        assert share.most_tokens == pytest.approx(max(IDLE_MIN_TOKENS, 0.1 * tokens_a_second), rel=0.1)
        share.tick(users=True)
        assert share.most_tokens == pytest.approx(max(MIN_TOKENS, 0.02 * tokens_a_second), rel=0.1)


class Shrinking(LiveDriver):
    """A server's driver whose passes may have fewer tokens from one group of jobs to the next, without the server."""

    def __init__(self) -> None:
        self.scheduler = SimpleNamespace(chunked_prefill_size=1000, max_prefill_tokens=1000)
        self.before_pass, self.whole, self.most_tokens = (lambda visited: None), 0, 60
        self.groups: list[int] = []

    def _run(self, jobs: Sequence[Job], ended: Any = None) -> Passes[None]:
        self.groups.append(len(jobs))
        self.most_tokens = 40
        yield
        assert self.most_in_pass >= sum(job.most_computed for job in jobs)


def test_jobs_of_a_gradient_are_not_cut_in_two_where_passes_become_shorter() -> None:
    driver = Shrinking()
    finished(driver.run([Job(tuple(range(30))) for _ in range(4)]))
    assert driver.groups == [2, 1, 1]


# ---- what a request may ask for --------------------------------------------------------------------------------------


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in REVIEWS))
    (tmp_path / "secret.jsonl").write_text("{}")
    (tmp_path / "data" / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    return tmp_path / "data"


def read(body: Any, allowed: Path) -> Any:
    return read_request(body, "some/model", "float32", allowed, "job-1")


def test_a_request_brings_records_or_names_a_file_that_is_allowed(allowed: Path) -> None:
    request = read({"records": REVIEWS, "num_steps": 3, "lora-rank": 4, **SETTINGS}, allowed)
    assert request.name == "job-1"
    assert [json.loads(line) for line in request.records["train_data"].splitlines()] == REVIEWS
    assert request.settings["lora_rank"] == 4
    named = read({"name": "a.b-c_1", "train_data": "reviews.jsonl", "stream": True, **SETTINGS}, allowed)
    assert named.settings["train_data"] == str(allowed / "reviews.jsonl")
    assert named.stream


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ([], "a job is an object"),
        ("x", "a job is an object"),
        ({"name": "../x"}, "name: '../x'"),
        ({"name": ""} | {"name": 5}, "name: 5"),
        ({"name": "x" * 65}, "name: "),
        ({"stream": "yes"}, "stream: "),
        ({"model": "other"}, "model is the server's"),
        ({"engine": "torch"}, "engine is the server's"),
        ({"output_dir": "/tmp"}, "output_dir is the server's"),
        ({"output-dir": "/tmp"}, "output_dir is the server's"),
        ({"trust_remote_code": True}, "trust_remote_code is the server's"),
        ({"sglang": {"tp_size": 2}}, "sglang is the server's"),
        ({"stream_data": "/etc/passwd"}, "stream_data is the server's"),
        ({"reward": "/tmp/evil.py:function"}, "reward: '/tmp/evil.py:function' is code"),
        ({"reward": ["length", "os:system"]}, "reward: 'os:system' is code"),
        ({"train_data": "../secret.jsonl"}, "train_data: ../secret.jsonl is outside"),
        ({"train_data": "/etc/passwd"}, "train_data: /etc/passwd is outside"),
        ({"train_data": "link.jsonl"}, "train_data: link.jsonl is outside"),
        ({"train_data": "none.jsonl"}, "train_data: none.jsonl is not in"),
        ({"train_data": 5}, "train_data: expected a path"),
        ({"train_data": "a\0b"}, "train_data: "),
        ({"eval_data": "../secret.jsonl"}, "eval_data: "),
        ({"adapter": "/tmp"}, "adapter: /tmp is outside"),
        ({"chat_template": "/etc/passwd"}, "chat_template: /etc/passwd is outside"),
        ({"model_name_or_path": "other"}, "model is the server's"),
        ({"base-model": "other"}, "model is the server's"),
        ({"train_file": "/etc/passwd"}, "train_data: /etc/passwd is outside"),
        ({"validation_file": "/etc/passwd"}, "eval_data: /etc/passwd is outside"),
        ({"chat_template_path": "../secret.jsonl"}, "chat_template: ../secret.jsonl is outside"),
        ({"reward_funcs": "os:system"}, "reward: 'os:system' is code"),
        ({"tables": {"sglang": {"tp_size": 2}}}, "tables is the server's"),
        ({"report_to": ["wandb"]}, "report_to is the server's"),
        ({"report-to": "none", "run_name": "x"}, "run_name is the server's"),
        ({"records": []}, "records: expected a list"),
        ({"records": "text"}, "records: expected a list"),
        ({"records": [1]}, "records: record 1 is no object"),
        ({"records": REVIEWS, "train_data": "reviews.jsonl"}, "records and train_data"),
        ({"num_steps": "many"}, "num_steps"),
        ({"num_steps": -1}, "num-steps"),
        ({"learning_rat": 1e-3}, "did you mean learning_rate"),
        ({"estimator": "jvp"}, "--estimator jvp"),
        ({"tuning": "full"}, "--tuning full"),
        ({"adam": 5}, "adam: expected a table"),
    ],
)
def test_what_no_job_may_ask_for_is_refused_by_name(body: Any, named: str, allowed: Path) -> None:
    with pytest.raises(InputError, match="^(?s:.*)" + named.replace("(", r"\(").replace(".", r"\.")):
        read(body, allowed)


def test_every_setting_that_names_a_file_is_held_to_the_folder() -> None:
    """A new one must be thought of: what is read from there is a path, or is known not to be one."""
    from zotune.config.settings import Config
    from zotune.config.typed import PATHS as ALL_PATHS
    from zotune.jobs.request import PATHS, SERVER_OWN

    assert set(ALL_PATHS) == set(PATHS) | (set(ALL_PATHS) & set(SERVER_OWN))
    assert {"model", "output_dir"} <= set(SERVER_OWN) & {item.name for item in fields(Config)}


def test_a_client_says_what_is_wrong_with_an_address() -> None:
    with pytest.raises(InputError, match="--server: expected an address"):
        JobsClient("file:///etc/passwd")
    with pytest.raises(InputError, match=r"--server: no answer from http://127\.0\.0\.1:9"):
        JobsClient("http://127.0.0.1:9").jobs()


# ---- runs that are kept going ----------------------------------------------------------------------------------------


class Server:
    """What a supervisor serves by, as it hears of it."""

    def __init__(self) -> None:
        self.served: list[tuple[str, int, dict[str, bytes]]] = []
        self.withdrawn: list[str] = []

    async def serve(self, name: str, step: int, folder: Path) -> None:
        self.served.append((name, step, {path.name: path.read_bytes() for path in folder.iterdir()}))

    async def withdraw(self, name: str) -> None:
        self.withdrawn.append(name)


@contextmanager
def supervised(folder: Path, model: Path) -> Iterator[tuple[Supervisor, Server]]:
    """A supervisor in a thread, whose jobs train with the torch engine."""
    server, loop = Server(), asyncio.new_event_loop()
    supervisor = Supervisor(
        folder, {}, {"model": str(model), "dtype": "float32", "engine": "torch"}, server.serve, server.withdraw
    )
    task: list[asyncio.Task[None]] = []

    def run() -> None:
        asyncio.set_event_loop(loop)
        task.append(loop.create_task(supervisor.run()))
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(task[0])
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield supervisor, server
    finally:
        loop.call_soon_threadsafe(lambda: task[0].cancel())
        thread.join()
        supervisor.close()


def wait(condition: Callable[[], Any], limit_s: float = 120.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def asked(allowed: Path, name: str, **settings: Any) -> Any:
    body = {"name": name, "records": REVIEWS, "estimator": "spsa", "directions": 1, "eval_steps": 4, **SETTINGS}
    return read({**body, **settings}, allowed)


def steps(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "run" / "journal.jsonl").read_text().splitlines()[1:]
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_jobs_train_one_after_the_other_are_killed_paused_and_cancelled_and_lose_nothing(
    opt_dir: Path, allowed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "jobs"
    length: dict[str, Any] = {"num_steps": 1000, "eval_steps": 20}  # some seconds, for all that happens to it
    undisturbed = mezo_finetune(
        opt_dir, REVIEWS, estimator="spsa", directions=1, dtype="float32", output_dir=tmp_path / "alone", **length,
        **SETTINGS,
    )  # fmt: skip
    with supervised(folder, opt_dir) as (supervisor, server):
        first = supervisor.submit(asked(allowed, "first", **length))
        supervisor.submit(asked(allowed, "second", num_steps=4))
        bad = supervisor.submit(asked(allowed, "bad", labels=["x", "y"], records=[{"text": "a", "label": 7}] * 4))
        with pytest.raises(Conflict, match="there is a job first already"):
            supervisor.submit(asked(allowed, "first"))
        with pytest.raises(NoSuchJob):
            supervisor.describe("third")
        wait(lambda: supervisor.describe("first")["step"] > 20)
        assert supervisor.describe("second")["state"] == "queued"
        assert first.state.process is not None
        os.kill(first.state.process[0], signal.SIGKILL)
        step = supervisor.describe("first")["step"]
        wait(lambda: supervisor.describe("first")["step"] > step + 10)
        supervisor.pause("first")
        with pytest.raises(Conflict, match="job first is paused"):
            supervisor.pause("first")
        wait(lambda: supervisor.describe("second")["state"] == "finished")
        wait(lambda: supervisor.describe("bad")["state"] == "failed")
        assert "label" in str(bad.state.error)
        supervisor.resume("first")
        wait(lambda: supervisor.describe("first")["step"] > step + 20)
    # The server has gone; another comes, and with it the job goes on, though it was not asked for again.
    with supervised(folder, opt_dir) as (supervisor, again):
        wait(lambda: supervisor.describe("first")["state"] == "finished")
        third = supervisor.submit(asked(allowed, "third", num_steps=100_000))
        wait(lambda: supervisor.describe("third")["served_step"] is not None)
        supervisor.cancel("third")
        wait(lambda: "third" in again.withdrawn)
        assert supervisor.describe("third")["state"] == "cancelled"
        with pytest.raises(Conflict, match="job third is cancelled"):
            supervisor.cancel("third")
    assert steps(first.path) == steps_of(undisturbed.run_folder)
    (last,) = [files for name, step, files in again.served if (name, step) == ("first", length["num_steps"])]
    assert last == {path.name: path.read_bytes() for path in undisturbed.adapter.iterdir()}
    assert [name for name, _, _ in server.served if name == "second"], "every job is served, from its first evaluation"
    assert third.run.journal.is_file(), "what was learned is kept"


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()[1:]]


@pytest.mark.slow
def test_the_process_of_a_killed_server_is_ended_before_its_job_goes_on(
    opt_dir: Path, allowed: Path, tmp_path: Path
) -> None:
    fixed = {"model": str(opt_dir), "dtype": "float32", "engine": "torch"}
    job = JobFolder.create(tmp_path / "job", asked(allowed, "job", num_steps=100_000), fixed)
    orphan = start(job, {})
    wait(lambda: job.run.metrics.is_file() and job.run.metrics.stat().st_size > 2_000)
    found = JobFolder.open(tmp_path / "job")
    assert found is not None
    end_orphan(found)
    orphan.wait(10)
    assert not psutil.pid_exists(orphan.pid)
    later = start(found, {})
    wait(lambda: len(steps(job.path)) > 30)
    interrupt(later)
    assert later.returncode is not None
    assert JobFolder.open(tmp_path) is None, "a folder that is no job"


def test_two_threads_that_change_a_job_lose_nothing(tmp_path: Path) -> None:
    job = JobFolder(tmp_path, JobState("job", created=0.0))
    with ThreadPoolExecutor(2) as threads:
        changes: list[dict[str, Any]] = [{"served": 200}, {"error": "it broke"}]
        for change in [threads.submit(job.change, **change) for _ in range(100) for change in changes]:
            change.result()
    kept = JobFolder.open(tmp_path)
    assert kept is not None
    assert kept.state == job.state == JobState("job", created=0.0, served=200, error="it broke")


def test_events_follow_a_file_that_grows_and_one_that_is_cut(tmp_path: Path) -> None:
    events, path = Events(tmp_path / "metrics.jsonl"), tmp_path / "metrics.jsonl"
    events.update()
    assert events.lines == []
    path.write_text('{"event": "step", "step": 1}\n{"event": "st')
    events.update()
    assert events.lines == [{"event": "step", "step": 1}]
    path.write_text('{"event": "step", "step": 1}\n{"event": "eval", "step": 1}\n')
    events.update()
    assert events.last("eval") == {"event": "eval", "step": 1}
    path.write_text('{"event": "step", "step": 1}\n')
    events.update()
    assert events.last("eval") is None


# ---- records that come in while a run goes on ------------------------------------------------------------------------


def streamed(opt_dir: Path, stream: Path, output: Path, **settings: Any) -> Any:
    return make_trainer(
        opt_dir, REVIEWS, estimator=settings.pop("estimator", "spsa"), batch_size=4, num_steps=5, eval_steps=2,
        stream_data=stream, output_dir=output, dtype="float32", **SETTINGS, **settings,
    )  # fmt: skip


def test_a_stream_gives_the_run_that_the_same_records_give_that_are_there(opt_dir: Path, tmp_path: Path) -> None:
    rows = [json.dumps(row) + "\n" for row in REVIEWS[:20]]
    whole, grows = tmp_path / "whole.jsonl", tmp_path / "grows.jsonl"
    whole.write_text("".join(rows))
    grows.write_text("")

    def grow() -> None:
        for row in rows:
            time.sleep(0.02)
            with grows.open("a") as file:
                file.write(row[:9])
                file.flush()
                file.write(row[9:])

    thread = threading.Thread(target=grow)
    thread.start()
    journals = []
    for name, stream in (("a", whole), ("b", grows)):
        with streamed(opt_dir, stream, tmp_path / name) as trainer:
            trainer.train()
        journals.append(steps_of(tmp_path / name))
    thread.join()
    assert journals[0] == journals[1]
    with make_trainer(
        opt_dir, REVIEWS, estimator="spsa", batch_size=4, num_steps=5, eval_steps=2, output_dir=tmp_path / "c",
        dtype="float32", **SETTINGS,
    ) as trainer:  # fmt: skip
        trainer.train()
    assert journals[0] != steps_of(tmp_path / "c"), "the training data in random order"


@pytest.mark.parametrize("estimator", ["spsa", "backprop"])
def test_a_run_that_learns_from_a_stream_goes_on_as_if_nothing_had_happened(
    estimator: str, opt_dir: Path, tmp_path: Path
) -> None:
    from zotune import resume

    stream = tmp_path / "stream.jsonl"
    stream.write_text("".join(json.dumps(row) + "\n" for row in REVIEWS[:20]))
    with streamed(opt_dir, stream, tmp_path / "whole", estimator=estimator) as trainer:
        trainer.train()
    with streamed(opt_dir, stream, tmp_path / "cut", estimator=estimator) as trainer:
        trainer.train_step()
        trainer.train_step()
        trainer.train_step()
    resume(tmp_path / "cut")
    assert steps_of(tmp_path / "cut") == steps_of(tmp_path / "whole")


def test_a_bad_record_of_a_stream_is_left_out_with_its_place(
    opt_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream = tmp_path / "stream.jsonl"
    rows = [json.dumps(row) for row in REVIEWS[:20]]
    stream.write_text("\n".join([rows[0], "{", "[]", '{"text": "x", "label": 9}', *rows[1:]]) + "\n")
    with streamed(opt_dir, stream, tmp_path / "run") as trainer:
        trainer.train()
    said = [record.message for record in caplog.records if "left out" in record.message]
    assert [text.split(":")[2] for text in said] == ["2", "3", "4"]


def test_a_batch_may_come_from_the_caller(opt_dir: Path, tmp_path: Path) -> None:
    def run(name: str) -> Any:
        return make_trainer(
            opt_dir, REVIEWS, estimator="spsa", batch_size=4, num_steps=3, dtype="float32", output_dir=tmp_path / name,
            **SETTINGS,
        )  # fmt: skip

    with run("own") as own, run("given") as given:
        for _ in range(2):
            batch = own._batch()
            own.train_step()
            given.train_step(batch)
        assert steps_of(tmp_path / "own") == steps_of(tmp_path / "given")
        given.train_step(own.train_examples[:4])
        own.train_step()
    assert steps_of(tmp_path / "own")[2] != steps_of(tmp_path / "given")[2]


def test_a_stream_that_is_not_there_is_refused_before_a_model_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--stream-data: there is no file"):
        mezo_finetune(tmp_path / "no model", REVIEWS, stream_data=tmp_path / "none.jsonl", **SETTINGS)


def test_records_are_appended_for_jobs_that_take_them(allowed: Path, tmp_path: Path) -> None:
    fixed = {"model": "m", "dtype": "float32", "engine": "torch"}
    job = JobFolder.create(tmp_path / "a", read({"stream": True, "records": REVIEWS, **SETTINGS}, allowed), fixed)
    assert append_records(job, {"records": REVIEWS[:3]}) == 3
    assert append_records(job, REVIEWS[3:5]) == 5
    assert [json.loads(line) for line in job.records.read_text().splitlines()] == REVIEWS[:5]
    bad: list[Any] = [{}, {"records": []}, [], "x", [1], {"records": [[]]}]
    for wrong in bad:
        with pytest.raises(InputError, match="records: expected a list"):
            append_records(job, wrong)
    other = JobFolder.create(tmp_path / "b", read({"records": REVIEWS, **SETTINGS}, allowed), fixed)
    with pytest.raises(InputError, match="takes no records"):
        append_records(other, REVIEWS)
