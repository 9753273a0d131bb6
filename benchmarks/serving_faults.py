"""Kill a server that trains a job, again and again: the job must go on, and end as if nothing had happened.

    .venv-sglang/bin/python benchmarks/serving_faults.py [--kills 20] [--write docs/train_while_serving.md]

A process of the server, or all of them, gets SIGKILL at a random moment of the job, in turns; then the server is
started again with the same folder. At the end the job's journal and adapter are compared with those of `zotune train
--engine sglang` which nobody disturbed.
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
STEPS = 120
SETTINGS: dict[str, Any] = {**JOB, "num_steps": STEPS, "eval_steps": 20, "estimator": "spsa", "directions": 2,
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
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    model, draw, kills = Path(demo_path("model")), random.Random(options.seed), Counter[str]()
    alone = zotune.mezo_finetune(
        model, task="demo", engine="sglang", dtype="float32", output_dir=options.folder / "alone", **SETTINGS
    )
    run = options.folder / "jobs" / "jobs" / "job" / "run"
    begun = False
    while True:
        state = "running"
        with served(model, options.folder, 0.1, "float32") as server:
            client = JobsClient(server)
            if not begun:
                client.submit(name="job", task="demo", **SETTINGS)
                begun = True
            left = options.kills - sum(kills.values())
            goal = client.job("job")["step"] + draw.uniform(0, 1.6 * (STEPS - client.job("job")["step"]) / (left + 1))
            while (state := client.job("job")["state"]) in ("queued", "running"):
                if left and client.job("job")["step"] >= goal:
                    break
                time.sleep(0.1)
            if state not in ("queued", "running"):
                if state != "finished":
                    raise SystemExit(f"the job is {state}: {client.job('job')['error']}")
                break
            time.sleep(draw.random())
            target = TARGETS[sum(kills.values()) % len(TARGETS)]
            if kill(target, options.folder):
                kills[target] += 1
                print(f"{target}, at step {len(journal(run)) if run.is_dir() else 0}", flush=True)
            if target == "the job's own process":
                time.sleep(3)
                continue
            end = time.monotonic() + 30
            while time.monotonic() < end and answers(client):
                time.sleep(0.2)
    report(options, kills, run, alone.run_folder)


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
