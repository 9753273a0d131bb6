"""A job of a server beside `zotune train --engine sglang` with the same settings, on IMDB: what each learns.

    .venv-sglang/bin/python benchmarks/job_accuracy.py [--model DIR] [--write docs/train_while_serving.md]

Each row of --seeds is one job and one run, on the same records. A user asks the server for answers all the while, so
that training and answers share the scheduler. CPU; one thread for each process.
"""

import argparse
import gzip
import json
import os
import shutil
import threading
from datetime import date
from pathlib import Path
from typing import Any

from serving_faults import journal
from train_while_serving import ask, put, served

import zotune
from zotune.data.demo import demo_path
from zotune.jobs.client import JobsClient

ROOT = Path(__file__).parents[1]
SETTINGS: dict[str, Any] = {"num_steps": 120, "eval_steps": 120, "batch_size": 16}


def records(path: Path, count: int) -> list[dict[str, Any]]:
    """Evenly taken from a file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return rows[:: len(rows) // count][:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path(demo_path("model")))
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data/imdb")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/zotune-job-accuracy"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=160)
    parser.add_argument("--held-out", type=int, default=250)
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    data = {
        "train_data": records(options.data / "train.jsonl.gz", options.train),
        "eval_data": records(options.data / "test.jsonl.gz", options.held_out),
    }
    by_job: dict[int, Any] = {}
    done = threading.Event()
    with served(options.model, options.folder, 0.5, "float32") as server:
        user = threading.Thread(target=ask_again, args=(server, done), daemon=True)
        user.start()
        client = JobsClient(server)
        for seed in options.seeds:
            name = f"seed-{seed}"
            client.submit(
                name=name, task="imdb", seed=seed, max_eval_samples=options.held_out,
                records=data["train_data"], eval_records=data["eval_data"], **SETTINGS,
            )  # fmt: skip
            for _ in client.metrics(name):
                pass
            by_job[seed] = client.job(name)
            print(by_job[seed]["state"], by_job[seed]["evaluations"], flush=True)
        done.set()
        user.join()
    rows = [
        "| seed | before | job in a server | `zotune train --engine sglang` | losses of steps apart, at most |",
        "|---" * 5 + "|",
    ]
    for seed in options.seeds:
        run = options.folder / f"run-{seed}"
        zotune.mezo_finetune(
            options.model, **data, task="imdb", engine="sglang", dtype="float32", seed=seed, output_dir=run,
            max_eval_samples=options.held_out, **SETTINGS,
        )  # fmt: skip
        alone = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        ends = [line["accuracy"] for line in alone if line["event"] == "eval"]
        ours, theirs = journal(Path(by_job[seed]["run_folder"])), journal(run)
        apart = max(abs(one["loss"] - other["loss"]) for one, other in zip(ours, theirs, strict=True))
        evaluations = by_job[seed]["evaluations"]
        rows.append(f"| {seed} | {ends[0]:.1%} | {evaluations[-1]['accuracy']:.1%} | {ends[-1]:.1%} | {apart:.1e} |")
        print(rows[-1], flush=True)
    model = "the demo's model" if options.model == Path(demo_path("model")) else options.model.name
    rows += [
        "",
        f"{options.train} reviews of IMDB, {SETTINGS['num_steps']} steps of {SETTINGS['batch_size']}, accuracy on "
        f"{options.held_out} others; {model} in float32, {os.cpu_count()} cores, {date.today()}.",
    ]
    print("\n".join(rows))
    if options.write:
        put(options.write, "job-accuracy", "\n".join(rows))


def ask_again(server: str, done: threading.Event) -> None:
    """One user, again and again."""
    while not done.is_set():
        ask(server, "A film that I would see again:", None, 16)


if __name__ == "__main__":
    main()
