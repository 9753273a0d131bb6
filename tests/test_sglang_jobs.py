"""Training jobs in SGLang's own server, started as an operator starts it: what they give, and what users notice."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.bad_job_requests import REQUESTS
from tests.conftest import REVIEWS
from tests.sglang_server import Server, serve
from zotune import InputError, JobsClient, mezo_finetune
from zotune.engine.sglang.names import VERSIONS, installed_version

pytestmark = [
    pytest.mark.usefixtures("quick_start"),
    pytest.mark.skipif(installed_version() not in VERSIONS, reason="SGLang is not installed"),
]

KEY = "the operator's"
TASK: dict[str, Any] = {"invocation": " It was", "labels": ["terrible", "great"]}
FLAGS = (
    "--mem-fraction-static", "0.8", "--max-total-tokens", "16384", "--enable-lora", "--lora-backend", "torch_native",
    "--max-loras-per-batch", "6", "--max-lora-rank", "8", "--lora-target-modules", "all",
)  # fmt: skip
PROMPTS = [list(range(3 + index, 20 + index)) for index in range(24)]


class JobServer:
    """A server that takes jobs, and its client; `kill` ends all of its processes at once, as a power cut does."""

    def __init__(self, server: Server, folder: Path, data: Path) -> None:
        self.server, self.folder, self.data = server, folder, data
        self.client = JobsClient(f"http://127.0.0.1:{server.port}")

    def finished(self, name: str, limit_s: float = 180.0) -> dict[str, Any]:
        wait(lambda: self.client.job(name)["state"] not in ("queued", "running"), limit_s)
        job = self.client.job(name)
        assert job["state"] == "finished", job["error"]
        return job

    def journal(self, name: str) -> list[dict[str, Any]]:
        return journal(self.folder / "jobs" / name / "run")


@contextlib.contextmanager
def jobs_on(model: Path, folder: Path, *flags: str, num_ranks: int = 1) -> Iterator[JobServer]:
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    (data / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in REVIEWS))
    log = folder.parent / f"{folder.name}.log"
    with serve(model, {}, log, *FLAGS, "--zotune-jobs", str(folder), *flags, num_ranks=num_ranks) as server:
        yield JobServer(server, folder, data)


@pytest.fixture(scope="module")
def jobs(opt_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobServer]:
    with jobs_on(opt_dir, tmp_path_factory.mktemp("server") / "jobs") as server:
        yield server


def wait(condition: Any, limit_s: float = 180.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def journal(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()[1:]]


def assert_same_run(found: list[dict[str, Any]], expected: list[dict[str, Any]], tolerance: float) -> None:
    """Losses and slopes within a tolerance; batches of another composition round in another way."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=tolerance)
        slopes = [[value for _, value in entry.get("slopes", [])] for entry in (one, other)]
        np.testing.assert_allclose(slopes[0], slopes[1], atol=100 * tolerance)


SHORT: dict[str, Any] = {"num_steps": 3, "eval_steps": 3, "batch_size": 4, "init_lora_weights": "kaiming"}
SETTINGS: dict[str, dict[str, Any]] = {
    "activated": {"estimator": "one_sided", "directions": 5, **TASK},
    "everywhere": {"estimator": "spsa", "directions": 1, "scope": "everywhere", **TASK},
    "lens": {"estimator": "lens", **TASK},
    "reward": {
        "reward": ["length"], "directions": 2, "max_new_tokens": 6, "num_generations": 2, "temperature": 0.7,
        "fields": ["prompt=text"],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def same(jobs: JobServer) -> JobServer:
    """The server, which computes these jobs while the tests compute the runs that they should be."""
    for name, settings in SETTINGS.items():
        jobs.client.submit(name=f"same-{name}", records=REVIEWS, **settings, **SHORT)
    return jobs


@pytest.mark.parametrize("name", SETTINGS)
def test_a_job_is_the_run_that_an_engine_of_its_own_gives(
    name: str, same: JobServer, opt_dir: Path, tmp_path: Path
) -> None:
    alone = mezo_finetune(
        opt_dir, REVIEWS, engine="sglang", dtype="float32", output_dir=tmp_path / "run", **SETTINGS[name], **SHORT
    )
    job = same.finished(f"same-{name}")
    assert_same_run(same.journal(f"same-{name}"), journal(alone.run_folder), 2e-6)
    assert job["evaluations"][-1]["loss"] == pytest.approx(alone.final.loss, abs=1e-5)  # type: ignore[union-attr]


def greedy(model: Any, prompt: list[int], num_tokens: int) -> list[int]:
    written = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=num_tokens,
        min_new_tokens=num_tokens, do_sample=False,
    )  # fmt: skip
    return [int(token) for token in written[0, len(prompt) :]]


@torch.inference_mode()
def test_users_get_the_same_answers_while_a_job_trains(jobs: JobServer, opt_dir: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    peft = get_peft_model(
        AutoModelForCausalLM.from_pretrained(opt_dir),
        LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.5)
    peft.save_pretrained(str(tmp_path / "own"))
    answer = jobs.server.post("/load_lora_adapter", {"lora_name": "own", "lora_path": str(tmp_path / "own")})
    assert answer["success"], answer
    expected = {"own": [greedy(peft, prompt, 12) for prompt in PROMPTS]}
    with peft.disable_adapter():
        expected[""] = [greedy(peft, prompt, 12) for prompt in PROMPTS]
    jobs.client.submit(
        name="beside", records=REVIEWS, num_steps=100_000, eval_steps=100_000, estimator="one_sided", directions=6,
        init_lora_weights="kaiming", **TASK,
    )  # fmt: skip
    wait(lambda: jobs.client.job("beside")["step"] > 1)
    before, asked = jobs.client.job("beside")["step"], 0
    wrong: list[int] = []
    end = time.monotonic() + 5

    def user(adapter: str) -> None:
        nonlocal asked
        while time.monotonic() < end:
            found = jobs.server.generate(PROMPTS, adapter or None, num_tokens=12)
            texts = [one["output_ids"] for one in found]
            asked += len(texts)
            wrong.extend(index for index, text in enumerate(texts) if text != expected[adapter][index])

    threads = [threading.Thread(target=user, args=(adapter,)) for adapter in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert asked > 2 * len(PROMPTS)
    assert 0 < jobs.client.job("beside")["engine_share"] < 0.6
    assert jobs.client.job("beside")["step"] > before, "training has its share beside users"
    jobs.client.cancel("beside")
    wait(lambda: jobs.client.job("beside")["state"] == "cancelled")


@torch.inference_mode()
def test_a_job_is_served_as_it_grows_and_no_answer_mixes_two_versions(
    jobs: JobServer, opt_dir: Path, tmp_path: Path
) -> None:
    model_name = jobs.server.get("/v1/models")["data"][0]["id"]
    jobs.client.submit(
        name="grows", train_data="reviews.jsonl", num_steps=60, eval_steps=1, max_eval_samples=2, batch_size=2,
        estimator="spsa", directions=1, learning_rate=3.0, scope="everywhere", init_lora_weights="kaiming", **TASK,
    )  # fmt: skip
    wait(lambda: jobs.client.job("grows")["served_step"] is not None)
    answers: list[list[list[int]]] = []
    failed: list[Any] = []

    def user() -> None:
        while not failed and jobs.client.job("grows")["state"] == "running":
            found = jobs.server.generate(PROMPTS[:4], "grows", num_tokens=16)
            if isinstance(found, list) and all("output_ids" in one for one in found):
                answers.append([one["output_ids"] for one in found])
            else:
                failed.append(found)

    users = [threading.Thread(target=user) for _ in range(4)]  # requests are on their way at every swap
    for thread in users:
        thread.start()
    for thread in users:
        thread.join()
    assert not failed
    jobs.finished("grows")
    run = jobs.folder / "jobs" / "grows" / "run"
    base = AutoModelForCausalLM.from_pretrained(opt_dir)
    versions: list[list[list[int]]] = []
    for step in range(61):
        from zotune import replay_run

        replay_run(run, tmp_path / str(step), step)
        peft = PeftModel.from_pretrained(base, tmp_path / str(step))
        versions.append([greedy(peft, prompt, 16) for prompt in PROMPTS[:4]])
        base = peft.unload()
    assert len({json.dumps(version) for version in versions}) > 10, "the versions answer in different ways"
    for batch in answers:
        for index, text in enumerate(batch):
            assert text in [version[index] for version in versions]
    assert len({json.dumps(batch[0]) for batch in answers}) > 1, "it was replaced under way"
    body = {"prompt": PROMPTS[0], "max_tokens": 16, "temperature": 0, "ignore_eos": True}
    named = jobs.server.post("/v1/completions", {**body, "model": "grows"})
    as_base = jobs.server.post("/v1/completions", {**body, "model": f"{model_name}:grows"})
    assert named["choices"][0]["text"] == as_base["choices"][0]["text"]
    (last,) = jobs.server.generate(PROMPTS[:1], "grows", num_tokens=16)
    assert last["output_ids"] == versions[-1][0]
    fetched = jobs.client.adapter("grows", tmp_path / "fetched")
    assert (fetched / "adapter_model.safetensors").read_bytes() == (
        run / "adapter" / "adapter_model.safetensors"
    ).read_bytes()
    events = list(jobs.client.metrics("grows"))
    assert [event["step"] for event in events if event["event"] == "step"] == list(range(1, 61))
    assert events[-1]["state"] == "finished"


def test_a_job_learns_from_records_that_come_in(jobs: JobServer) -> None:
    jobs.client.submit(
        name="online", records=REVIEWS, stream=True, num_steps=3, batch_size=4, estimator="spsa", directions=1,
        init_lora_weights="kaiming", **TASK,
    )  # fmt: skip
    assert jobs.client.add_records("online", REVIEWS[:4]) == 4
    wait(lambda: jobs.client.job("online")["step"] == 1)
    time.sleep(1)
    assert jobs.client.job("online")["step"] == 1, "it waits for more"
    assert jobs.client.add_records("online", REVIEWS[4:12]) == 12
    jobs.finished("online")


def test_a_job_learns_from_what_users_said_of_answers(jobs: JobServer, opt_dir: Path, tmp_path: Path) -> None:
    seed = [{"prompt": row["text"], "completion": " It was that.", "reward": 1.0} for row in REVIEWS[:8]]
    said = [{**row, "reward": reward} for row, reward in zip(seed, (1.0, -0.5, 0.0, 2), strict=False)]
    stream = tmp_path / "stream.jsonl"
    stream.write_text("".join(json.dumps(row) + "\n" for row in said))
    settings: dict[str, Any] = {"num_steps": 1, "batch_size": 4, "fields": ["weight=reward"], "estimator": "lens",
                                "target_modules": ["out_proj"], "init_lora_weights": "kaiming"}  # fmt: skip
    jobs.client.submit(name="thumbs", records=seed, stream=True, **settings)
    jobs.client.add_records("thumbs", [{**seed[0], "reward": "good"}, *said])  # one is left out
    alone = mezo_finetune(
        opt_dir, seed, engine="torch", dtype="float32", stream_data=stream, output_dir=tmp_path / "run", **settings
    )
    jobs.finished("thumbs")
    (ours,), (theirs,) = jobs.journal("thumbs"), journal(alone.run_folder)
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
    assert "field 'reward' should be a number" in (jobs.folder / "jobs" / "thumbs" / "log.txt").read_text()


@pytest.fixture
def several(jobs: JobServer) -> Iterator[JobServer]:
    """With the jobs that `tests.bad_job_requests` speaks of."""
    settings: dict[str, Any] = {"num_steps": 1, "estimator": "spsa", "directions": 1, "init_lora_weights": "kaiming"}
    for name, more in (("done", {"stream": True, "batch_size": 2}), ("open", {"stream": True, "batch_size": 2}),
                       ("gone", {}), ("rest", {}), ("next", {})):  # fmt: skip
        jobs.client.submit(name=name, records=REVIEWS, **{**settings, **TASK, **more})
    jobs.client.add_records("done", REVIEWS[:2])
    jobs.client.cancel("gone")
    jobs.client.pause("rest")
    jobs.finished("done")
    wait(lambda: jobs.client.job("open")["state"] == "running")
    yield jobs
    for name in ("open", "rest", "next"):
        if jobs.client.job(name)["state"] != "finished":
            jobs.client.cancel(name)


def refused(url: str, method: str, body: Any, key: str | None = None) -> tuple[int, str]:
    """The status of an answer, and what it says."""
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"Authorization": key} if key else {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        found = json.loads(text)
        message = found["error"]["message"] if isinstance(found.get("error"), dict) else str(next(iter(found.values())))
        return error.code, message


def test_bad_requests_get_a_status_and_a_sentence_and_the_server_goes_on(several: JobServer) -> None:
    assert len({repr(request)[:9000] for request in REQUESTS}) == len(REQUESTS) > 100
    before, known = several.server.generate(PROMPTS[:1], num_tokens=4), {job["name"] for job in several.client.jobs()}
    for method, path, body, status, named in REQUESTS:
        request = f"{method} {path} {str(body)[:80]}"
        code, said = refused(f"{several.client.server}/zotune/jobs{path}", method, body)
        assert code == status, (request, said)
        assert named in said, request
        assert said, request
        assert "\n" not in said, request
        after = several.server.generate(PROMPTS[:1], num_tokens=4)
        assert after[0]["output_ids"] == before[0]["output_ids"], request
    assert {job["name"] for job in several.client.jobs()} == known, "none of them began a job"
    assert several.client.job("open")["step"] == 0
    several.client.add_records("open", REVIEWS[:2])
    several.finished("open")


def test_a_job_that_this_server_cannot_train_fails_alone_with_its_reason(jobs: JobServer) -> None:
    jobs.client.submit(name="rank", records=REVIEWS, lora_rank=16, init_lora_weights="kaiming", num_steps=1, **TASK)
    jobs.client.submit(name="modules", records=REVIEWS, target_modules=["fc2"], num_steps=1, **TASK)
    wait(lambda: jobs.client.job("rank")["state"] == "failed")
    assert "--lora-rank 16: the server takes 8" in jobs.client.job("rank")["error"]
    wait(lambda: jobs.client.job("modules")["state"] == "failed")
    assert "out_proj, q_proj, v_proj here, and not fc2" in jobs.client.job("modules")["error"]
    jobs.client.submit(name="after", records=REVIEWS, num_steps=1, **TASK)  # A starts from the server's own model
    jobs.finished("after")


def test_a_job_goes_on_by_itself_when_its_server_was_killed_and_starts_again(opt_dir: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "estimator": "spsa", "directions": 1, "num_steps": 60, "eval_steps": 20, "batch_size": 4,
        "init_lora_weights": "kaiming", **TASK,
    }  # fmt: skip
    alone = mezo_finetune(opt_dir, REVIEWS, dtype="float32", output_dir=tmp_path / "alone", **settings)
    folder, flags = tmp_path / "jobs", ("--api-key", KEY)
    with jobs_on(opt_dir, folder, *flags) as server:
        for key in (None, "Bearer wrong", "Bearer ", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}"):
            for method, path in (("GET", ""), ("POST", ""), ("POST", "/job/cancel"), ("GET", "/job/adapter")):
                assert refused(f"{server.client.server}/zotune/jobs{path}", method, b"{}", key)[0] == 401, key
        server.client.api_key = "wrong"
        with pytest.raises(InputError, match="wants another key"):
            server.client.jobs()
        server.client.api_key = KEY
        server.client.submit(name="job", records=REVIEWS, **settings)
        wait(lambda: server.client.job("job")["step"] > 8)
        process = json.loads((folder / "jobs" / "job" / "job.json").read_text())["process"][0]
    wait(lambda: not alive(process), 30)  # the server is killed at the end of the block; its trainer ends by itself
    with jobs_on(opt_dir, folder, *flags) as server:
        server.client.api_key = KEY
        server.finished("job")
        assert server.client.job("job")["served_step"] == 60
        assert len(server.server.generate(PROMPTS[:1], "job", num_tokens=2, key=KEY)) == 1
        assert_same_run(server.journal("job"), journal(alone.run_folder), 2e-5)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().split(")")[1].split()[0] != "Z"


FAULTY = """
import os

from sglang.srt.plugins.hook_registry import HookRegistry, HookType


def register():
    HookRegistry.register("sglang.srt.managers.scheduler.Scheduler.run_batch", run_batch, HookType.AROUND)


def run_batch(original, scheduler, batch, *args, **kwargs):
    if getattr(batch.reqs[0], "is_training", False) and os.path.exists(os.environ["FAULT"]):
        raise RuntimeError("out of memory")
    return original(scheduler, batch, *args, **kwargs)
"""


@pytest.fixture
def fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As long as this file is there, passes of training fail in servers that start after it: a plugin of SGLang's."""
    plugin = tmp_path / "plugin"
    (plugin / "faulty-1.dist-info").mkdir(parents=True)
    (plugin / "faulty-1.dist-info" / "METADATA").write_text("Name: faulty\nVersion: 1\n")
    (plugin / "faulty-1.dist-info" / "entry_points.txt").write_text("[sglang.srt.plugins]\nfaulty = faulty:register\n")
    (plugin / "faulty.py").write_text(FAULTY)
    monkeypatch.setenv("PYTHONPATH", f"{plugin}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("FAULT", str(tmp_path / "fault"))
    return tmp_path / "fault"


def test_two_ranks_train_as_one_and_outlive_a_job_that_fails_in_the_middle_of_a_step(
    opt_dir: Path, tmp_path: Path, fault: Path
) -> None:
    settings: dict[str, Any] = {"estimator": "spsa", "directions": 2, **SHORT, **TASK}
    alone = mezo_finetune(opt_dir, REVIEWS, dtype="float32", output_dir=tmp_path / "alone", **settings)
    with jobs_on(opt_dir, tmp_path / "jobs", "--chunked-prefill-size", "16", num_ranks=2) as server:

        def failed(name: str, records: list[dict[str, Any]], **settings: Any) -> str:
            server.client.submit(name=name, records=records, **settings, **SHORT)
            wait(lambda: server.client.job(name)["state"] == "failed")
            time.sleep(2)  # an idle server counts its memory, and ends where some is missing
            return str(server.client.job(name)["error"])

        server.client.submit(name="two", records=REVIEWS, **settings)
        server.finished("two")
        assert_same_run(server.journal("two"), journal(alone.run_folder), 2e-5)
        long = [{"prompt": row["text"], "completion": " It was" + 3 * " that was"} for row in REVIEWS[:8]]
        refused = failed("long", long, estimator="lens", target_modules=["out_proj"])
        assert "raise --sglang.chunked-prefill-size" in refused
        fault.touch()
        assert "out of memory after step 0" in failed("scores", REVIEWS, estimator="lens", **TASK)
        fault.unlink()
        server.client.submit(name="lens", records=REVIEWS, estimator="lens", **SHORT, **TASK)
        server.finished("lens")
        assert len(server.server.generate(PROMPTS[:1], "two", num_tokens=2)) == 1


ATTACH = """
import json, sys
import sglang
import zotune
from zotune.run.metrics import read_metrics

if __name__ == "__main__":
    model, data, output = sys.argv[1:4]
    engine = sglang.Engine(
        model_path=model, device="cpu", attention_backend="torch_native", sampling_backend="pytorch",
        grammar_backend="none", disable_cuda_graph=True, dtype="float32", max_total_tokens=16384, log_level="warning",
        enable_lora=True, lora_backend="torch_native", max_loras_per_batch=4, max_lora_rank=8,
        lora_target_modules=["all"],
    )
    sampling = {"max_new_tokens": 8, "temperature": 0}
    before = engine.generate(input_ids=list(range(3, 20)), sampling_params=sampling)["output_ids"]
    for turn in range(2):
        with zotune.attach(engine):
            zotune.mezo_finetune(
                model, data, engine="sglang", dtype="float32", output_dir=f"{output}/{turn}", num_steps=3, batch_size=4,
                estimator="spsa", directions=2, init_lora_weights="kaiming", invocation=" It was",
                labels=["terrible", "great"],
            )
    after = engine.generate(input_ids=list(range(3, 20)), sampling_params=sampling)["output_ids"]
    engine.shutdown()
    assert before == after
    assert sglang.mezo_finetune.__doc__ and sglang.MeZOTrainer.__doc__
"""


def test_an_engine_that_runs_can_be_attached_to_more_than_once(
    opt_dir: Path, reviews_file: Path, tmp_path: Path
) -> None:
    script = tmp_path / "attach.py"
    script.write_text(ATTACH)
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run(
        [sys.executable, str(script), str(opt_dir), str(reviews_file), str(tmp_path)], env=environment, timeout=300,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_run(journal(tmp_path / "0"), journal(tmp_path / "1"), 2e-6)


def test_the_names_of_the_first_design_train(opt_dir: Path, tmp_path: Path) -> None:
    from zotune import sglang_names

    result = sglang_names.mezo_finetune(
        str(opt_dir), REVIEWS, server_args={"max_total_tokens": 16384, "page_size": 4}, kv_strategy="everywhere",
        epsilon=5e-3, seed=4, num_steps=2, batch_size=4, directions=1, estimator="spsa", dtype="float32",
        init_lora_weights="kaiming", output_dir=tmp_path / "run", **TASK,
    )  # fmt: skip
    header = json.loads((tmp_path / "run" / "journal.jsonl").read_text().splitlines()[0])
    assert header["seed"] == 4
    assert result.summary["steps"] == 2
    with pytest.raises(InputError, match="kv_strategy"):
        sglang_names.mezo_finetune(str(opt_dir), REVIEWS, kv_strategy="other")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="server_args"):
        sglang_names.mezo_finetune(str(opt_dir), REVIEWS, server_args=5)


@pytest.mark.parametrize(
    "flags", [("--tokenizer-worker-num", "2"), ("--dp-size", "2"), ("--pp-size", "2"), ("--nnodes", "2")]
)
def test_a_server_of_which_there_is_more_than_one_takes_no_jobs(
    flags: tuple[str, str], opt_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from sglang.srt.server_args import prepare_server_args

    from zotune.jobs.plugin import JOBS, _arguments

    monkeypatch.setenv(JOBS, str(tmp_path))
    words = ["--model-path", str(opt_dir), "--device", "cpu", "--attention-backend", "torch_native"]
    with pytest.raises(SystemExit) as ended:
        _arguments(prepare_server_args, [*words, *flags, "--dist-init-addr", "127.0.0.1:5000"])
    assert ended.value.code == 2
    assert f"--zotune-jobs does not go with {flags[0]} 2" in capsys.readouterr().err
    assert _arguments(prepare_server_args, words).tokenizer_worker_num == 1
