"""What the lens trains best, at equal steps: B or both matrices, and of which modules; a table of docs/lens.md.

    python runs/lens_modules.py OUTPUT_FOLDER                              # everything that is not done yet
    python runs/lens_modules.py OUTPUT_FOLDER --models demo --tasks trec --seeds 0
    python runs/lens_modules.py --write docs/lens.md                       # the table of what is done

The adapter of the last step is judged by test examples that nothing was chosen by. What is finished is a line of
docs/lens_modules.jsonl, and never computed again. Seconds are those of the processor, since other work may share it.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

from page import put
from smollm2 import heading, processor

from zotune import Callback, mezo_finetune

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "docs" / "lens_modules.jsonl"
# Model -> steps, test examples, the modules of its attention, and those that write into the residual stream.
MODELS = {
    "demo": (300, 500, ("q_proj", "k_proj", "v_proj", "out_proj"), ("out_proj",)),
    "smollm2": (100, 300, ("q_proj", "k_proj", "v_proj", "o_proj"), ("o_proj", "down_proj")),
}
# Method -> modules, settings.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lens, B": ("writers", {"estimator": "lens", "tuning": "lora_fa"}),
    "lens, A and B": ("writers", {"estimator": "lens", "tuning": "lora"}),
    "lens, B of all of attention": ("attention", {"estimator": "lens", "tuning": "lora_fa"}),
    "lens, A and B of all of attention": ("attention", {"estimator": "lens", "tuning": "lora"}),
    "backpropagation, A and B of all of attention": ("attention", {"estimator": "backprop", "tuning": "lora"}),
}


class Clock(Callback):
    """The processor's time at the end of each step."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_step_end(self, event: Any) -> None:
        self.at.append(time.process_time())


def kept() -> list[dict[str, Any]]:
    return [json.loads(line) for line in KEPT.read_text("utf-8").splitlines()] if KEPT.is_file() else []


def cells(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What there is to do, by what names it."""
    for seed in options.seeds:
        for model in options.models:
            for task in options.tasks:
                for method in options.methods:
                    yield {"model": model, "task": task, "method": method, "rate": options.rate, "seed": seed}


def outcome(cell: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Train, and judge by the test file."""
    num_steps, num_tested, attention, writers = MODELS[cell["model"]]
    modules, method = METHODS[cell["method"]]
    clock, folder = Clock(), options.data / cell["task"]
    result = mezo_finetune(
        cell["model"], str(folder / "train.jsonl.gz"), str(folder / "test.jsonl.gz"), task=cell["task"],
        max_eval_samples=num_tested, num_steps=num_steps, eval_steps=num_steps, learning_rate=cell["rate"],
        target_modules=attention if modules == "attention" else writers, seed=cell["seed"], num_threads=1,
        overwrite=True, output_dir=str(options.output / "-".join(map(str, cell.values()))), callbacks=[clock], **method,
    )  # fmt: skip
    step_s = statistics.median(end - begin for begin, end in pairwise(clock.at))
    assert result.final is not None
    return {"accuracy": result.final.accuracy, "loss": result.final.loss, "step_s": step_s}


def table(rows: list[dict[str, Any]]) -> str:
    """Means over seeds."""
    lines = [heading("model", "task", "steps", "trained", "rate", "seeds", "test accuracy, %", "loss", "s a step")]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["model"], row["task"], list(METHODS).index(row["method"]))):
        groups.setdefault((row["model"], row["task"], row["method"], row["rate"]), []).append(row)
    for (model, task, method, rate), group in groups.items():
        accuracies = [100 * row["accuracy"] for row in group]
        spread = f" ± {statistics.stdev(accuracies):.1f}" if len(group) > 1 else ""
        lines.append(
            f"| {model} | {task} | {MODELS[model][0]} | {method} | {rate:g} | {len(group)} "
            f"| {statistics.mean(accuracies):.1f}{spread} | {statistics.mean(row['loss'] for row in group):.3f} "
            f"| {statistics.mean(row['step_s'] for row in group):.2f} |"
        )
    machines = sorted({row["processor"] for row in rows})
    return "\n".join(lines) + f"\n\nOne thread of: {'; '.join(machines)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tasks", nargs="+", default=["trec", "sst2"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data")
    parser.add_argument("--write", type=Path, help="a page to put the table into")
    options = parser.parse_args()
    for cell in cells(options) if options.output else ():
        if cell not in [{name: row[name] for name in cell} for row in kept()]:
            line = {**cell, **outcome(cell, options), "processor": processor(), "date": str(date.today())}
            with KEPT.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
    if options.write:
        put(options.write, "lens-modules", table(kept()))


if __name__ == "__main__":
    main()
