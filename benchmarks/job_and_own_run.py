"""A training job on a server beside `zotune train --engine sglang` with the same settings: what comes out, how fast,
and what it needs.

    .venv-sglang/bin/python benchmarks/job_and_own_run.py --model MODEL --train-data FILE --eval-data FILE --task imdb
        [--steps 50] [--dtype float32] [--write docs/train_while_serving.md --table NAME]

Nobody else uses the server. Memory is the resident set of the server's scheduler before the job, and at most while it
trains, and of the job's own process. CPU.
"""

import argparse
import json
import os
import shutil
import time
from datetime import date
from pathlib import Path
from typing import Any

import psutil
from serving_faults import journal
from train_while_serving import put, served

import zotune
from zotune.assemble.model import model_path
from zotune.engine.sglang.live.arrival import DEFAULT_SHARE
from zotune.jobs.client import JobsClient


def resident(words: str, folder: Path) -> int:
    """Bytes of the largest process that has these words in its command line or its name, and belongs to the server."""
    found = [0]
    for process in psutil.process_iter(["cmdline", "name", "memory_info"]):
        told = " ".join(process.info["cmdline"] or ())
        if words in process.info["name"] or (words in told and str(folder) in told):
            found.append(process.info["memory_info"].rss)
    return max(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--train-data", required=True)
    parser.add_argument("--eval-data", required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/zotune-job-and-own-run"))
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    parser.add_argument("--table", default="job-and-own-run", help="which table of the page")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    data = options.folder / "jobs" / "data"
    data.mkdir(parents=True)
    files = {}
    for name in ("train_data", "eval_data"):
        source = Path(getattr(options, name))
        files[name] = shutil.copy(source, data / f"{name}.{source.name}")
    model = Path(model_path(options.model))
    settings: dict[str, Any] = {
        "task": options.task, "num_steps": options.steps, "eval_steps": options.steps, "max_train_samples": 512,
        "max_eval_samples": 200, "max_length": options.max_length, "seed": 0,
    }  # fmt: skip
    run = options.folder / "jobs" / "jobs" / "job" / "run"
    with served(model, options.folder, DEFAULT_SHARE, options.dtype) as server:
        client = JobsClient(server)
        before = resident("sglang::scheduler", options.folder)
        client.submit(name="job", **settings, **{name: Path(file).name for name, file in files.items()})
        during = own = 0
        while (job := client.job("job"))["state"] in ("queued", "running"):
            during = max(during, resident("sglang::scheduler", options.folder))
            own = max(own, resident("zotune.cli import main", options.folder))
            time.sleep(1)
        if job["state"] != "finished":
            raise SystemExit(f"the job is {job['state']}: {job['error']}")
    alone = zotune.mezo_finetune(
        model, engine="sglang", dtype=options.dtype, output_dir=options.folder / "alone", **files, **settings
    )
    rows = ["| | accuracy before | after | loss after | steps/s |", "|---|---|---|---|---|"]
    for name, folder in (("a job on a server", run), ("`zotune train --engine sglang`", Path(alone.run_folder))):
        rows.append(row(name, folder))
    away = max(
        abs(one["loss"] - other["loss"]) for one, other in zip(journal(run), journal(alone.run_folder), strict=True)
    )
    rows += [
        "",
        f"{model.name} in {options.dtype}, {options.task}, {options.steps} steps of the default settings, 512 "
        f"training records; evaluated on 200 others. Losses of the steps are within {away:.1e} of each other. "
        f"Resident: the server's scheduler {before / 2**20:.0f} MiB before the job and at most "
        f"{during / 2**20:.0f} MiB with it, the job's own process {own / 2**20:.0f} MiB. "
        f"{date.today()}, a shared machine, load average at the end "
        f"{os.getloadavg()[0]:.1f}.",
    ]
    text = "\n".join(rows)
    print(text)
    if options.write:
        put(options.write, options.table, text)


def row(name: str, folder: Path) -> str:
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evaluations = [event for event in events if event["event"] == "eval"]
    steps = [event["step_time_s"] for event in events if event["event"] == "step"][1:]  # the first sees new prompts
    return (
        f"| {name} | {evaluations[0]['accuracy']:.1%} | {evaluations[-1]['accuracy']:.1%} | "
        f"{evaluations[-1]['loss']:.4f} | {len(steps) / sum(steps):.2f} |"
    )


if __name__ == "__main__":
    main()
