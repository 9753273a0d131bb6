"""The study on a real model: SmolLM2-135M-Instruct on real tasks, on one core; tables of docs/results.md.

    python runs/smollm2.py OUTPUT_FOLDER                                  # everything that is not done yet
    python runs/smollm2.py OUTPUT_FOLDER --part rates --tasks sst2        # learning rates and modules of the default
    python runs/smollm2.py OUTPUT_FOLDER --part study --seeds 0           # every method, 300 seconds of training each
    python runs/smollm2.py OUTPUT_FOLDER --part study --by-steps --seeds 1 2    # as many steps as seed 0, no clock
    python runs/smollm2.py --write docs/results.md                        # the tables of what is done

What is finished is a line of docs/smollm2.jsonl, with the processor, and never computed again; stop at any moment and
run it again. Training has 1,000 examples, 300 others choose the adapter, up to 500 of the test file judge it.
"""

import argparse
import json
import math
import multiprocessing
import platform
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

from page import put

from zotune import Callback, Evaluation, evaluate, mezo_finetune
from zotune.engine.memory import reset_peak_memory
from zotune.run.metrics import EvalEvent, StepEvent, read_metrics
from zotune.run.trainer import MeZOTrainer

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "docs" / "smollm2.jsonl"
# Task -> files for training and test, in ../shared/data.
TASKS = {
    "sst2": ("train", "test"), "mr": ("train", "test"), "imdb": ("train", "test"), "trec": ("train", "test"),
    "rte": ("train", "val"), "cb": ("train", "val"), "boolq": ("train", "val"), "copa": ("train", "val"),
}  # fmt: skip
MODULES = {
    "q, v": ("q_proj", "v_proj"), "o, down": ("o_proj", "down_proj"), "all linear": ("all-linear",),
}  # fmt: skip
RATE_TASKS = ("sst2", "mr", "trec")
RATE_STEPS = 150
MEZO = {
    "scope": "everywhere", "estimator": "spsa", "directions": 1, "optimizer": "sgd", "tuning": "lora",
    "init_lora_weights": "kaiming", "lr_scheduler_type": "constant", "epsilon": 1e-3, "learning_rate": 1e-4,
}  # fmt: skip
WRITERS = ("o_proj", "down_proj")
# Method -> settings; None: no training.
METHODS: dict[str, dict[str, Any] | None] = {
    "zero-shot": None,
    "in-context, 16 demonstrations": None,
    "lens": {"estimator": "lens"},
    "lens, 60 seconds": {"estimator": "lens"},
    "lens, B alone": {"estimator": "lens", "tuning": "lora_fa"},
    "16 one-sided probes": {"estimator": "one_sided"},
    "backpropagation through the suffix": {"estimator": "backprop"},
    "backpropagation through the suffix, o and down": {"estimator": "backprop", "target_modules": WRITERS},
    "MeZO as published": MEZO,
    "backpropagation of whole sequences": {"estimator": "backprop", "scope": "everywhere"},
}
MOST_TESTED = 500
COLUMNS = (("seconds", 1, 0), ("steps", 1, 0), ("tokens", 1e6, 2), ("peak_memory_bytes", 2**20, 0))  # unit, digits
SECONDS = 300.0
MINUTE = "lens, 60 seconds"
# About how many steps that is; the learning rate falls over those. Prompts are computed once for each example, so that
# long ones weigh most in the first epoch.
STEPS = {
    "probes": {"sst2": 250, "mr": 250, "imdb": 45, "trec": 85, "rte": 130, "cb": 150, "boolq": 45, "copa": 50},
    "gradient": {"sst2": 330, "mr": 330, "imdb": 60, "trec": 300, "rte": 200, "cb": 250, "boolq": 60, "copa": 250},
    "minute": {"sst2": 45, "mr": 50, "imdb": 6, "trec": 40, "rte": 20, "cb": 40, "boolq": 20, "copa": 25},
    "everywhere": {"sst2": 120, "mr": 120, "imdb": 15, "trec": 40, "rte": 40, "cb": 30, "boolq": 15, "copa": 60},
}
SEARCHED = {
    "default": {"estimator": "one_sided"},
    "default, everywhere": {"estimator": "one_sided", "scope": "everywhere"},
}
# Method, modules, learning rates and tasks of the search, each for RATE_STEPS steps.
SEARCHES = (
    ("default", "q, v", (3e-3, 1e-2, 3e-2), RATE_TASKS),
    ("lens", "o, down", (3e-4, 1e-3, 3e-3), RATE_TASKS),
    ("lens, B alone", "o, down", (1e-3, 3e-3, 1e-2), RATE_TASKS),
    ("backpropagation through the suffix", "q, v", (2e-4, 1e-3, 3e-3), RATE_TASKS),
    ("default, everywhere", "q, v", (1e-3, 3e-3, 1e-2), ("sst2",)),
    ("default", "o, down", (1e-3, 3e-3, 1e-2), ("sst2",)),
    ("default", "all linear", (1e-3, 3e-3, 1e-2), ("sst2",)),
)


class StopInTime(Callback):
    """Ends a run after so many seconds of the processor in its steps, or so many steps."""

    def __init__(self, seconds: float, steps: float = math.inf) -> None:
        self._most, self._steps, self.spent = seconds, steps, 0.0
        self.at_evaluations: list[float] = []

    def on_train_begin(self, trainer: MeZOTrainer) -> None:
        self._trainer = trainer
        self._began = time.process_time()

    def on_evaluate(self, event: EvalEvent) -> None:
        self.at_evaluations.append(self.spent)
        self._began = time.process_time()

    def on_step_end(self, event: StepEvent) -> None:
        now = time.process_time()
        self.spent += now - self._began
        self._began = now
        if self.spent >= self._most or event.step >= self._steps:
            self._trainer.should_stop = True


def kept() -> list[dict[str, Any]]:
    return [json.loads(line) for line in KEPT.read_text("utf-8").splitlines()] if KEPT.is_file() else []


def processor() -> str:
    cpu = Path("/proc/cpuinfo").read_text("utf-8") if Path("/proc/cpuinfo").is_file() else ""
    names = [line.split(":")[1].strip() for line in cpu.splitlines() if line.startswith("model name")]
    flags = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in cpu]
    return f"{names[0] if names else platform.machine()} ({', '.join(flags) or 'no bfloat16'})"


def cells(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What there is to do, by what names it."""
    if options.part in (None, "rates"):
        for method, modules, rates, tasks in [search for search in SEARCHES if search[0] in options.methods]:
            for task in [task for task in tasks if task in options.tasks]:
                for rate in rates:
                    what = {"task": task, "method": method, "modules": modules, "rate": rate}
                    yield {"part": "rates", **what, "seed": 0}
    if options.part in (None, "study"):
        for seed in options.seeds:
            for task in options.tasks:
                for method in [method for method in options.methods if method in METHODS]:
                    yield {"part": "study", "task": task, "method": method, "seed": seed}


def settings_of(cell: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    train, _ = TASKS[cell["task"]]
    folder = options.data / cell["task"]
    held_out = {"eval_data": str(folder / "dev.jsonl.gz")} if (folder / "dev.jsonl.gz").is_file() else {}
    shared = {
        "task": cell["task"], "train_data": str(folder / f"{train}.jsonl.gz"), **held_out,
        "max_train_samples": 1000, "max_eval_samples": 300, "num_threads": options.threads, "seed": cell["seed"],
        "dtype": "float32" if options.by_steps else "bfloat16", "overwrite": True,
        "output_dir": str(options.output / "-".join(str(part) for part in cell.values())),
    }  # fmt: skip
    if cell["part"] == "rates":
        method = METHODS.get(cell["method"]) or SEARCHED[cell["method"]]
        own = {"target_modules": MODULES[cell["modules"]], "learning_rate": cell["rate"], "num_steps": RATE_STEPS}
        return {**shared, **method, **own, "eval_steps": 50}
    settings = METHODS[cell["method"]]
    assert settings is not None
    if settings is MEZO:  # at a constant rate
        return {**shared, **settings, "num_steps": 100_000, "eval_steps": 50}
    steps = STEPS[kind_of(cell["method"], settings)][cell["task"]]
    return {**shared, **settings, "num_steps": steps, "eval_steps": -(-steps // 5)}


def kind_of(method: str, settings: dict[str, Any]) -> str:
    """Which row of STEPS a method has."""
    if method == MINUTE:
        return "minute"
    if "scope" in settings:
        return "everywhere"
    return "probes" if settings["estimator"] == "one_sided" else "gradient"


def done(cell: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Train and judge."""
    test_data = str(options.data / cell["task"] / f"{TASKS[cell['task']][1]}.jsonl.gz")
    if cell["part"] == "study" and METHODS[cell["method"]] is None:
        train_data = str(options.data / cell["task"] / f"{TASKS[cell['task']][0]}.jsonl.gz")
        shown: dict[str, Any] = {"num_demonstrations": 16, "train_data": train_data, "max_length": 8192}
        shown = shown if "in-context" in cell["method"] else {}
        found = evaluate(
            test_data, model="smollm2", task=cell["task"], max_eval_samples=MOST_TESTED, num_threads=options.threads,
            seed=cell["seed"], **shown,
        )  # fmt: skip
        return {"test": result(found), "seconds": 0.0, "steps": 0, "tokens": 0}
    reset_peak_memory()
    settings = settings_of(cell, options)
    clock = StopInTime(60.0 if cell["method"] == MINUTE else SECONDS)
    if options.by_steps:
        clock = StopInTime(math.inf, steps_of_seed_0(cell))
    ended = mezo_finetune("smollm2", callbacks=[clock], **settings)
    events = read_metrics(Path(settings["output_dir"]) / "metrics.jsonl")
    steps = [event for event in events if isinstance(event, StepEvent)]
    summary = json.loads((Path(settings["output_dir"]) / "summary.json").read_text("utf-8"))
    timed = {
        "seconds": clock.spent, "evaluated_at_seconds": clock.at_evaluations,
        "peak_memory_bytes": summary["peak_memory_bytes"],
    }  # fmt: skip
    outcome = {
        **({} if options.by_steps else timed), "steps": len(steps),
        "tokens": sum(step.tokens_computed for step in steps),
        "evaluations": [[e.step, e.accuracy, e.loss] for e in events if isinstance(e, EvalEvent)],
    }  # fmt: skip
    if cell["part"] == "study":
        best = ended.adapter.parent / "best"
        outcome["test"] = result(
            evaluate(test_data, adapter=best, max_eval_samples=MOST_TESTED, num_threads=options.threads)
        )
    return outcome


def steps_of_seed_0(cell: dict[str, Any]) -> float:
    """As many as its clock left it; all that its settings have, where it is not kept."""
    same = [row for row in kept() if {name: row.get(name) for name in cell} == {**cell, "seed": 0}]
    return same[0]["steps"] if same else math.inf


def result(found: Evaluation) -> dict[str, Any]:
    return {"accuracy": found.accuracy, "loss": found.loss, "num_examples": found.num_examples}


def rates_table(rows: list[dict[str, Any]]) -> str:
    """Accuracy and loss where the held-out loss was lowest."""
    names = ("task", "method", "modules", "learning rate", "steps", "held-out accuracy, %", "held-out loss", "seconds")
    lines = [heading(*names)]
    order = [method for method, *_ in SEARCHES]
    for row in sorted(
        rows, key=lambda r: (RATE_TASKS.index(r["task"]), order.index(r["method"]), r["modules"], r["rate"])
    ):
        _, accuracy, loss = min(row["evaluations"], key=lambda evaluation: evaluation[2])
        what = [row["task"], row["method"], row["modules"], f"{row['rate']:g}", str(row["steps"])]
        cells = [*what, f"{100 * accuracy:.1f}", f"{loss:.3f}"]
        lines.append(f"| {' | '.join(cells)} | {row['seconds']:.0f} |")
    return "\n".join(lines)


def study_table(rows: list[dict[str, Any]]) -> str:
    """Means over seeds; `1 + 2` are one with a clock and two by steps, which have only accuracies and steps."""
    lines = [heading("task", "method", "seeds", "test accuracy, %", "seconds", "steps", "million tokens", "peak MiB")]
    for task in TASKS:
        for method in METHODS:
            group = [row for row in rows if (row["task"], row["method"]) == (task, method)]
            if not group:
                continue
            accuracies = [100 * row["test"]["accuracy"] for row in group]
            spread = f" ± {statistics.stdev(accuracies):.1f}" if len(group) > 1 else ""
            timed = sum("seconds" in row for row in group)
            seeds = str(timed) if timed == len(group) else f"{timed} + {len(group) - timed}"
            what = [task, method, seeds, f"{statistics.mean(accuracies):.1f}{spread}"]
            for name, unit, digits in COLUMNS:
                known = [row[name] / unit for row in group if row.get(name)]
                what.append(f"{statistics.mean(known):,.{digits}f}" if known else "-")
            lines.append(f"| {' | '.join(what)} |")
    return "\n".join(lines)


def reached_table(rows: list[dict[str, Any]]) -> str:
    """When the lens was first as good, held out, as the probes at their best; means over seeds of the same task."""
    names = ("task", "probes' best held-out accuracy, %", "their seconds to there", "seeds of the lens that reached it")
    lines = [heading(*names, "its seconds", "times fewer")]
    timed = [row for row in rows if "evaluated_at_seconds" in row]
    for task in TASKS:
        probes = [row for row in timed if (row["task"], row["method"]) == (task, "16 one-sided probes")]
        lenses = [row for row in timed if (row["task"], row["method"]) == (task, MINUTE)]
        if not probes or not lenses:
            continue
        target = statistics.mean(max(accuracies(row)) for row in probes)
        theirs = statistics.mean(at for row in probes if (at := seconds_to(row, max(accuracies(row)))) is not None)
        own = [seconds for row in lenses if (seconds := seconds_to(row, target)) is not None]
        mean = statistics.mean(own) if own else None
        found = f"{mean:.0f} | {theirs / mean:.0f}" if mean else "- | -"
        lines.append(f"| {task} | {100 * target:.1f} | {theirs:.0f} | {len(own)} of {len(lenses)} | {found} |")
    return "\n".join(lines)


def accuracies(row: dict[str, Any]) -> list[float]:
    """Held out, of the evaluations after training began."""
    return [accuracy for _, accuracy, _ in row["evaluations"][1:]]


def seconds_to(row: dict[str, Any], accuracy: float) -> float | None:
    """Of training, to the first evaluation that is as good."""
    pairs = zip(row["evaluated_at_seconds"][1:], accuracies(row), strict=True)
    return next((seconds for seconds, found in pairs if found >= accuracy), None)


def heading(*names: str) -> str:
    return f"| {' | '.join(names)} |\n{'|---' * len(names)}|"


TABLES = (("rates", "rates", rates_table), ("study", "study", study_table), ("reached", "study", reached_table))


def write(page: Path) -> None:
    for name, part, table in TABLES:
        rows = [row for row in kept() if row["part"] == part]
        machines = sorted({row["processor"] for row in rows})
        if rows:
            put(page, f"smollm2-{name}", f"{table(rows)}\n\nOne thread of: {'; '.join(machines)}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("--part", choices=("rates", "study"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS | SEARCHED, default=[*METHODS, *SEARCHED])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    help_text = "in float32, as many steps as seed 0 took: for a processor that is slow in bfloat16"
    parser.add_argument("--by-steps", action="store_true", help=help_text)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data")
    parser.add_argument("--write", type=Path, help="a page to put the tables into")
    options = parser.parse_args()
    if options.by_steps and options.part != "study":
        parser.error("--by-steps goes with --part study")
    if options.output:
        names = [{name: row.get(name) for name in cell} for cell in cells(options) for row in kept()]
        for cell in cells(options):
            if cell not in names:
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:  # for its peak of memory
                    outcome = alone.submit(done, cell, options).result()
                line = {**cell, **outcome, "processor": processor(), "date": str(date.today())}
                with KEPT.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print(json.dumps(line), flush=True)
    if options.write:
        write(options.write)


if __name__ == "__main__":
    main()
