"""A masked model's own head beside a new one, by loss and by accuracy itself, with each method; table of
docs/masked_models.md.

    python runs/masked_models.py MODEL OUTPUT_FOLDER            # all that is not done yet
    python runs/masked_models.py MODEL OUTPUT_FOLDER --rates    # learning rates, on held-out examples of sst2 alone
    python runs/masked_models.py --write docs/masked_models.md  # the table of what is done

MODEL is a folder of a masked model, as runs/pretrain_masked_model.py makes one. Training has K examples of each label,
drawn with MeZO's five data seeds, and about a minute of one core, in bfloat16 or --dtype; the score is the accuracy
over 500 examples of the test file, whose rights and wrongs are kept for a paired test. What is finished is a line of
docs/masked_models.jsonl, and never computed again.
"""

import argparse
import gzip
import json
import math
import random
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from page import put

from zotune import evaluate, mezo_finetune
from zotune.data.tasks import TASKS as KNOWN_TASKS

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "docs" / "masked_models.jsonl"
SEEDS = (13, 21, 42, 87, 100)
NUM_TESTED = 500
NAMES = ("task", "head", "objective", "method", "seed", "rate")  # what a row is named by
TASKS = {"sst2": 512, "mr": 512, "trec": 40}  # examples of each label
OBJECTIVES = ("cross_entropy", "accuracy")
HEADS = {"lm": "its own", "classification": "new"}
METHODS: dict[str, dict[str, Any]] = {
    "MeZO": {
        "estimator": "spsa", "directions": 1, "optimizer": "sgd", "lr_scheduler_type": "constant", "epsilon": 1e-3,
        "num_steps": 120,
    },
    "4 one-sided probes": {"estimator": "one_sided", "num_steps": 48},
    "lens": {"estimator": "lens", "num_steps": 60},
    "backpropagation": {"estimator": "backprop", "num_steps": 60},
}  # fmt: skip
# Of few examples, none may be answered otherwise at a near probe: all slopes are zero then, and the run ends.
OF_ACCURACY: dict[str, Any] = {"batch_size": 64, "epsilon": 3e-2, "num_steps": 40}
# Head -> method -> learning rates tried; the first of them is the table's.
RATES = {
    "lm": {
        "MeZO": (2e-3, 5e-4, 8e-3), "4 one-sided probes": (4e-3, 1e-2), "lens": (3e-3, 1e-2),
        "backpropagation": (3e-3, 1e-3),
    },
    "classification": {
        "MeZO": (2e-3, 2e-4), "4 one-sided probes": (4e-3,), "lens": (1e-3, 3e-3),
        "backpropagation": (3e-3,),
    },
}  # fmt: skip
PROBING = ("MeZO", "4 one-sided probes")  # those that need no gradient


def cells(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What there is to do, by what names it."""
    if options.rates:
        for head, methods in RATES.items():
            for method, rates in methods.items():
                for rate in rates if len(rates) > 1 else ():
                    shared = {"task": "sst2", "head": head, "objective": "cross_entropy", "method": method}
                    yield {**shared, "seed": SEEDS[0], "rate": rate}
        return
    for task in options.tasks:
        yield {"task": task, "head": "lm", "objective": "", "method": "untrained", "seed": 0}
    for objective in options.objectives:
        for seed in options.seeds:
            for task in options.tasks:
                for head in HEADS:
                    for method in METHODS if objective == "cross_entropy" else PROBING:
                        yield {"task": task, "head": head, "objective": objective, "method": method, "seed": seed}


def done(cell: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Which of the test examples are right; of a learning rate, accuracy and loss on examples held out."""
    data, task, rate = options.data / cell["task"], cell["task"], cell.get("rate")
    with gzip.open(data / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    records = random.Random(0).sample(records, NUM_TESTED)
    shared: dict[str, Any] = {"num_threads": options.threads, "dtype": options.dtype}
    tested: dict[str, Any] = {"max_eval_samples": NUM_TESTED, "model": str(options.model), "task": task}
    seconds = 0.0
    if cell["method"] != "untrained":
        method = METHODS[cell["method"]] | (OF_ACCURACY if cell["objective"] == "accuracy" else {})
        ended = mezo_finetune(
            options.model, data / "train.jsonl.gz", task=task, head=cell["head"], objective=cell["objective"],
            num_per_class=TASKS[task], data_seed=cell["seed"], seed=cell["seed"], scope="everywhere",
            learning_rate=rate or RATES[cell["head"]][cell["method"]][0], max_eval_samples=300 if rate else 32,
            eval_steps=1000, overwrite=True, output_dir=str(options.output / f"run-{cell['seed']}"), **shared, **method,
        )  # fmt: skip
        seconds = ended.summary["train_time_s"]
        if rate:
            assert ended.final is not None
            return {"accuracy": ended.final.accuracy, "loss": ended.final.loss, "seconds": seconds}
        tested = {"max_eval_samples": NUM_TESTED, "adapter": ended.adapter}
    found = evaluate(records, **shared, **tested)
    assert found.predictions
    names = [label.partition("=")[0] for label in KNOWN_TASKS[task].labels]
    golds = [names.index(row["label"]) if row["label"] in names else row["label"] for row in records]
    right = [answer == gold for answer, gold in zip(found.predictions, golds, strict=True)]
    assert sum(right) / NUM_TESTED == found.accuracy
    marks = "".join("01"[is_right] for is_right in right)
    return {"accuracy": found.accuracy, "loss": found.loss, "seconds": seconds, "right": marks}


def table(rows: list[dict[str, Any]]) -> str:
    """Means and deviations over seeds of the test accuracy, in percent."""
    rows = [row for row in rows if "rate" not in row]
    lines = ["| task | head | objective | untrained | " + " | ".join(METHODS) + " |", "|---" * (4 + len(METHODS)) + "|"]
    for task in TASKS:
        first = next((row for row in rows if (row["task"], row["method"]) == (task, "untrained")), None)
        for head, shown in HEADS.items():
            for objective in OBJECTIVES:
                own = [r for r in rows if (r["task"], r["head"], r["objective"]) == (task, head, objective)]
                if not own or not first:
                    continue
                texts = [_shown([r for r in own if r["method"] == name], first) for name in METHODS]
                start = f"{100 * first['accuracy']:.1f}" if head == "lm" else "-"
                name = "loss" if objective == "cross_entropy" else objective
                lines.append(f"| {task} | {shown} | {name} | {start} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _shown(rows: list[dict[str, Any]], first: dict[str, Any]) -> str:
    """Mean, deviation and number of seeds; with a star where they are better than untrained: an exact sign test over
    the examples that one has right and the other has not, of each seed, at 1 in 100 in the worst of the seeds."""
    if not rows:
        return "-"
    values = [100 * row["accuracy"] for row in rows]
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    star = "\\*" if all(_chance(first["right"], row["right"]) < 0.01 for row in rows) else ""
    return f"{statistics.mean(values):.1f}{spread}{star} ({len(values)})"


def _chance(before: str, after: str) -> float:
    """Of as many gains, among the examples that changed, where both ways are as likely."""
    gains = sum(pair == ("0", "1") for pair in zip(before, after, strict=True))
    changed = sum(one != other for one, other in zip(before, after, strict=True))
    return sum(math.comb(changed, count) for count in range(gains, changed + 1)) / 2**changed


def table_of_rates(rows: list[dict[str, Any]]) -> str:
    lines = ["| head | method | learning rate | held-out accuracy, % | loss |", "|---" * 5 + "|"]
    for row in (row for row in rows if "rate" in row):
        accuracy, shown = 100 * row["accuracy"], HEADS[row["head"]]
        lines.append(f"| {shown} | {row['method']} | {row['rate']:g} | {accuracy:.1f} | {row['loss']:.3f} |")
    return "\n".join(lines)


def kept() -> list[dict[str, Any]]:
    return [json.loads(line) for line in KEPT.read_text("utf-8").splitlines()] if KEPT.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--rates", action="store_true", help="compare learning rates, and print what is held out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16", help="float32 is quicker where a processor has no bfloat16")
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data")
    parser.add_argument("--write", type=Path, help="a page to put the table into")
    options = parser.parse_args()
    if options.output:
        there = [{name: row[name] for name in NAMES if name in row} for row in kept()]
        for cell in cells(options):
            if cell not in there:
                line = json.dumps({**cell, **done(cell, options), "dtype": options.dtype})
                with KEPT.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
                print(line, flush=True)
    if options.rates:
        print(table_of_rates(kept()))
    if options.write:
        put(options.write, "masked-heads", table(kept()))


if __name__ == "__main__":
    main()
