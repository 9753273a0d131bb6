"""What users of a server notice of a training job on it, and what the job gets.

    .venv-sglang/bin/python benchmarks/train_while_serving.py [--write docs/train_while_serving.md]

A server of the demo's model (or --model), with two adapters, has users in closed loop: each asks again as soon as it
has its answer. Phases without and with a training job alternate, in pairs. Written are the latency and the time to the
first token with the job over those without, whether every answer is the same, and the steps that training made; and
then, without users, the job's steps a second over those of `zotune train --engine sglang` alone. CPU; one thread for
each process.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from zotune.data.demo import demo_path
from zotune.engine.sglang.live.arrival import DEFAULT_SHARE
from zotune.jobs.client import JobsClient

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "runs"))
from page import put

JOB: dict[str, Any] = {"num_steps": 100_000, "eval_steps": 1_000_000, "max_eval_samples": 16, "max_train_samples": 64}
OPTIONS = (
    "--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch", "--grammar-backend",
    "none", "--disable-cuda-graph", "--mem-fraction-static", "0.8", "--max-total-tokens", "65536", "--sleep-on-idle",
    "--log-level", "warning", "--enable-lora", "--lora-backend", "torch_native", "--max-loras-per-batch", "8",
    "--max-lora-rank", "8", "--lora-target-modules", "all",
)  # fmt: skip


@dataclass
class Phase:
    """What users saw in some seconds."""

    latency: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    answers: dict[tuple[int, str | None], set[str]] = field(default_factory=dict)


@contextlib.contextmanager
def served(model: Path, folder: Path, share: float, dtype: str) -> Iterator[str]:
    """The address of a server that takes jobs; at the end all of its processes are killed at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    adapters = [f"{name}={make_adapter(model, folder / name, seed)}" for seed, name in enumerate(("a", "b"))]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "sglang.launch_server", "--model-path", str(model), "--port", str(port), "--dtype",
             dtype, *OPTIONS, "--lora-paths", *adapters, "--zotune-jobs", str(folder / "jobs"), "--zotune-share",
             str(share)],
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    server = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{server}/health", timeout=5).close()
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(f"the server did not start; see {folder / 'server.log'}") from None
                time.sleep(0.5)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def make_adapter(model: Path, folder: Path, seed: int) -> Path:
    """An adapter whose answers are its own."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    peft = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model),
        LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    peft.save_pretrained(str(folder))
    return folder


def ask(server: str, prompt: str, adapter: str | None, num_tokens: int) -> tuple[float, float, str]:
    """Seconds to the first token and to the last one, and the answer."""
    sampling = {"max_new_tokens": num_tokens, "temperature": 0, "ignore_eos": True}
    body = json.dumps({"text": prompt, "lora_path": adapter, "sampling_params": sampling, "stream": True}).encode()
    request = urllib.request.Request(f"{server}/generate", body, {"Content-Type": "application/json"})
    began, first, text = time.perf_counter(), 0.0, ""
    with urllib.request.urlopen(request, timeout=300) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter() - began
                text = json.loads(line[6:])["text"]
    return first, time.perf_counter() - began, text


def users(server: str, prompts: list[str], number: int, seconds: float, num_tokens: int) -> Phase:
    """Of closed-loop users, what they see in some seconds, after one round that is not counted."""
    phase, lock, end = Phase(), threading.Lock(), time.monotonic() + seconds

    def user(index: int) -> None:
        turn, adapter = 0, (None, "a", "b")[index % 3]
        while turn == 0 or time.monotonic() < end:
            place = (index + turn * number) % len(prompts)
            first, whole, text = ask(server, prompts[place], adapter, num_tokens)
            with lock:
                if turn:
                    phase.first_token.append(first)
                    phase.latency.append(whole)
                phase.answers.setdefault((place, adapter), set()).add(text)
            turn += 1

    threads = [threading.Thread(target=user, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return phase


def wait_until(client: JobsClient, name: str, steps_after: int, limit_s: float = 300) -> dict[str, Any]:
    """Until a job has taken a step beyond that."""
    end = time.monotonic() + limit_s
    while True:
        job = client.job(name)
        if job["state"] == "running" and job["step"] > steps_after:
            return job
        if job["error"] or time.monotonic() > end:
            raise SystemExit(f"the job does not train: {job}")
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path(demo_path("model")))
    parser.add_argument("--folder", type=Path, default=Path("/tmp/zotune-train-while-serving"))
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a phase")
    parser.add_argument("--tokens", type=int, default=16, help="of an answer")
    parser.add_argument("--share", type=float, default=DEFAULT_SHARE)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    lines = Path(demo_path("train.jsonl")).read_text().splitlines()
    prompts = [json.loads(line)["text"] for line in lines[: 3 * options.users]]
    job = {"task": "demo", **JOB}
    pairs: list[tuple[Phase, Phase]] = []
    trained: list[float] = []
    with served(options.model, options.folder, options.share, options.dtype) as server:
        client = JobsClient(server)
        users(server, prompts, options.users, options.seconds / 2, options.tokens)  # caches are warm, as in use
        client.submit(name="job", **job)
        wait_until(client, "job", 3)
        for _ in range(options.pairs):
            client.pause("job")
            while client.job("job")["state"] != "paused" or is_training(options.folder):
                time.sleep(0.2)
            alone = users(server, prompts, options.users, options.seconds, options.tokens)
            client.resume("job")
            before = wait_until(client, "job", client.job("job")["step"])
            beside = users(server, prompts, options.users, options.seconds, options.tokens)
            trained.append((client.job("job")["step"] - before["step"]) / options.seconds)
            pairs.append((alone, beside))
            print(ratio_line(alone, beside), f"training {trained[-1]:.2f} steps/s", flush=True)
        before = wait_until(client, "job", 8)  # as of the engine of its own: all prompts have been seen
        time.sleep(options.seconds)
        idle = (client.job("job")["step"] - before["step"]) / options.seconds
        client.cancel("job")
    own = own_engine(options.model, options.folder, options.dtype, options.seconds)
    report(options, pairs, trained, idle, own)


def is_training(folder: Path) -> bool:
    return json.loads((folder / "jobs" / "jobs" / "job" / "job.json").read_text())["process"] is not None


def own_engine(model: Path, folder: Path, dtype: str, seconds: float) -> float:
    """Steps a second of `zotune train --engine sglang`, when all prompts have been seen."""
    import zotune

    class Stop(zotune.Callback):
        began, seconds, steps = 0.0, 1.0, 0

        def on_train_begin(self, trainer: Any) -> None:
            self.trainer = trainer

        def on_step_end(self, event: Any) -> None:
            if event.step == 8:
                self.began = time.monotonic()
            elif event.step > 8:
                self.steps = event.step - 8
                self.trainer.should_stop = time.monotonic() - self.began > seconds
                self.seconds = time.monotonic() - self.began

    stop = Stop()
    zotune.mezo_finetune(
        model, task="demo", engine="sglang", dtype=dtype, callbacks=[stop], output_dir=folder / "own", **JOB
    )
    return stop.steps / stop.seconds


def quantile(values: list[float], share: float) -> float:
    return float(np.quantile(values, share))


def ratios(alone: Phase, beside: Phase) -> dict[str, float]:
    return {
        f"{what}, {name}": quantile(getattr(beside, key), share) / quantile(getattr(alone, key), share)
        for what, key in (("latency", "latency"), ("first token", "first_token"))
        for name, share in (("median", 0.5), ("99 %", 0.99))
    }


def ratio_line(alone: Phase, beside: Phase) -> str:
    return "  ".join(f"{name} {value:.2f}" for name, value in ratios(alone, beside).items())


def report(
    options: argparse.Namespace, pairs: list[tuple[Phase, Phase]], trained: list[float], idle: float, own: float
) -> None:
    answers: dict[tuple[int, str | None], set[str]] = {}
    for phase in (phase for pair in pairs for phase in pair):
        for key, texts in phase.answers.items():
            answers.setdefault(key, set()).update(texts)
    differ = sum(len(texts) > 1 for texts in answers.values())
    number = sum(len(phase.latency) for pair in pairs for phase in pair)
    rows = ["| of users' requests, with the job over without | median of pairs | range |", "|---|---|---|"]
    found = [ratios(*pair) for pair in pairs]
    for name in found[0]:
        values = sorted(pair[name] for pair in found)
        rows.append(f"| {name} | {np.median(values):.2f} | {values[0]:.2f} - {values[-1]:.2f} |")
    rows += [
        "",
        f"{options.users} users, {options.tokens} tokens an answer, {number} answers in {options.pairs} pairs of "
        f"{options.seconds:.0f} s; alone, latency {quantile([s for a, _ in pairs for s in a.latency], 0.5):.2f} s in "
        f"the median, first token {quantile([s for a, _ in pairs for s in a.first_token], 0.5):.2f} s. Of "
        f"{len(answers)} questions asked both ways {differ} had more than one answer. Training's share: "
        f"{options.share}; it made {np.median(trained):.2f} steps/s beside the users, {idle:.2f} where there were "
        f"none, and {own:.2f} with a scheduler of its own, which has LoRA at two modules of a block, the server at "
        f"all: {idle / own:.2f} of that.",
        "",
        f"{Path(options.model).name} in {options.dtype}, two cores of a shared machine, {date.today()}; load average "
        f"at the end {os.getloadavg()[0]:.1f}.",
    ]
    text = "\n".join(rows)
    print(text)
    if options.write:
        put(options.write, "train-while-serving", text)


if __name__ == "__main__":
    main()
