"""Kill a server that trains a job, again and again: the job must go on, and end as if nothing had happened.

    .venv-sglang/bin/python benchmarks/serving_faults.py [--kills 20] [--write docs/train_while_serving.md]

A process of the server, or all of them, gets SIGKILL at a random moment of the job, in turns; then the server is
started again with the same folder. At the end the job's journal and adapter are compared with those of `zotune train
--engine sglang` which nobody disturbed. With `--minutes` it stops early, which is one more kill of all, and with
`--resume` goes on.
"""

import argparse
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from safetensors.numpy import load_file
from train_while_serving import JOB, put, served

import zotune
from zotune.data.demo import demo_path
from zotune.errors import InputError
from zotune.jobs.client import JobsClient

TARGETS = ("the scheduler", "the process that answers", "the job's own process", "all processes")
STEPS = 600
SETTINGS: dict[str, Any] = {**JOB, "num_steps": STEPS, "eval_steps": 100, "estimator": "spsa", "directions": 2,
                            "init_lora_weights": "kaiming"}  # fmt: skip


def children(of: psutil.Process) -> list[psutil.Process]:
    return [of, *of.children(recursive=True)]


def kill(target: str, folder: Path) -> bool:
    """Whether there was such a process."""
    found = []
    for process in psutil.process_iter(["cmdline", "name"]):
        words = " ".join(process.info["cmdline"] or ())
        trains = "zotune.cli import main" in words and str(folder) in words
        serves = "sglang.launch_server" in words and str(folder) in words
        if (target, True) in (("the job's own process", trains), ("the process that answers", serves)):
            found.append(process)
        elif serves:
            inside = children(process)
            if target == "all processes":
                found += inside
            elif target == "the scheduler":
                found += [child for child in inside if "scheduler" in child.name()]
    for process in found:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    return bool(found)


def journal(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/zotune-serving-faults"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long; --resume goes on")
    parser.add_argument("--resume", action="store_true", help="go on with what lies in --folder")
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    options = parser.parse_args()
    if not options.resume:
        shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True, exist_ok=True)
    model, end = Path(demo_path("model")), time.monotonic() + 60 * options.minutes
    alone, run = options.folder / "alone", options.folder / "jobs" / "jobs" / "job" / "run"
    if not (alone / "summary.json").is_file():
        zotune.mezo_finetune(
            model, task="demo", engine="sglang", dtype="float32", output_dir=alone, overwrite=True, **SETTINGS
        )
    done = options.folder / "killed.txt"
    done.touch()
    while time.monotonic() < end:
        with served(model, options.folder, 0.1, "float32") as server:
            client = JobsClient(server)
            if not client.jobs():
                client.submit(name="job", task="demo", **SETTINGS)
            job = disturbed(client, options, run, done, end)
            if job["state"] == "finished":
                report(options, Counter(done.read_text().splitlines()), run, alone)
                return
            if job["state"] not in ("queued", "running"):
                raise SystemExit(f"the job is {job['state']}: {job['error']}")
    print(f"{len(done.read_text().splitlines())} kills so far; go on with --resume")


def disturbed(client: JobsClient, options: argparse.Namespace, run: Path, done: Path, end: float) -> dict[str, Any]:
    """Kill until the server is gone, the job has ended or the time is over; the job as it was seen last."""
    while True:
        number = len(done.read_text().splitlines())
        draw, left, job = random.Random(f"{options.seed} {number}"), options.kills - number, client.job("job")
        goal = job["step"] + draw.uniform(0, 1.6 * (STEPS - job["step"]) / (left + 1)) if left else STEPS
        while job["step"] < goal or not left:
            if job["state"] not in ("queued", "running") or time.monotonic() > end:
                return job
            time.sleep(0.1)
            job = client.job("job")
        time.sleep(0.3 * draw.random())
        target = TARGETS[number % len(TARGETS)]
        if kill(target, options.folder):
            with done.open("a") as file:
                file.write(target + "\n")
            print(f"{target}, at step {len(journal(run)) if run.is_dir() else 0}", flush=True)
        if target != "the job's own process":
            wait_until_silent(client)
            return job
        time.sleep(3)


def wait_until_silent(client: JobsClient, limit_s: float = 30) -> None:
    end = time.monotonic() + limit_s
    while time.monotonic() < end and answers(client):
        time.sleep(0.2)


def answers(client: JobsClient) -> bool:
    try:
        client.jobs()
    except InputError:
        return False
    return True


def report(options: argparse.Namespace, kills: Counter[str], run: Path, alone: Path) -> None:
    found, expected = journal(run), journal(alone)
    assert [entry["step"] for entry in found] == [entry["step"] for entry in expected]
    losses = max(abs(one["loss"] - other["loss"]) for one, other in zip(found, expected, strict=True))
    slopes = max(
        abs(one[1] - other[1])
        for entry, again in zip(found, expected, strict=True)
        for one, other in zip(entry["slopes"], again["slopes"], strict=True)
    )
    numbers = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (run, alone))
    ours, theirs = numbers
    away = max(float(np.abs(ours[name] - theirs[name]).max()) for name in theirs)
    moved = max(float(np.abs(theirs[name]).max()) for name in theirs if "lora_B" in name)
    rows = ["| killed | times |", "|---|---|", *(f"| {target} | {kills[target]} |" for target in TARGETS)]
    rows += [
        "",
        f"{STEPS} steps, all there, once each; losses within {losses:.1e} of those of an undisturbed "
        f"`zotune train --engine sglang`, slopes within {slopes:.1e}, the adapter within {away:.1e} where it moved by "
        f"{moved:.1e}. {date.today()}, {os.cpu_count()} cores.",
    ]
    text = "\n".join(rows)
    print(text)
    if options.write:
        put(options.write, "serving-faults", text)


if __name__ == "__main__":
    main()
