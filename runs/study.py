"""The study of docs/results.md: every method at its best learning rate, on small real tasks, at equal budgets.

Parts, in this order; each is one or more `zotune sweep` or `zotune compare`:
  tune       the learning rate of each method, by successive halving on sst2, judged by held-out loss;
  screen     all methods for the same seconds;
  final      FINALISTS on all tasks, for as many steps as take a minute or two on sst2, the rate falling to zero;
  reference  plain MeZO for 20,000 steps.
What is finished is kept in docs/results.jsonl and never computed again, on whatever machine; stop at any moment and
run it again. Two processes may work side by side with other --tasks (in `tune`, other --methods).

    python runs/study.py OUTPUT_FOLDER && python runs/study_report.py docs/results.md
"""

import argparse
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli_w

from zotune.commands.console import set_up_logging
from zotune.run.metrics import write_json
from zotune.study.cells import read_study
from zotune.study.compare import run_comparison
from zotune.study.sweep import run_sweep

SGD_1, SGD_16 = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2], [4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2]
ADAM, NORMALISED = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2], [1e-3, 4e-3, 1.6e-2, 6.4e-2, 0.25]
FIRST_ORDER = [5e-4, 1e-3, 2e-3, 4e-3, 8e-3]
EVA = {"estimator": "one_sided", "optimizer": "adam", "tuning": "lora_fa", "init_lora_weights": "eva"}
LENS = {"estimator": "lens", "optimizer": "adam", "init_lora_weights": "eva"}
# Name -> learning rates to try, settings.
METHODS: dict[str, tuple[list[float], dict[str, Any]]] = {
    "MeZO everywhere": (SGD_1, {"scope": "everywhere"}),
    "MeZO": (SGD_1, {}),
    "spsa 4": (SGD_16, {"directions": 4}),
    "spsa 16": (SGD_16, {"directions": 16}),
    "spsa 16, momentum": (SGD_1, {"directions": 16, "sgd": {"momentum": 0.9}}),
    "spsa 1, adam": (ADAM, {"optimizer": "adam"}),
    "spsa 4, adam": (ADAM, {"directions": 4, "optimizer": "adam"}),
    "spsa 16, adam": (ADAM, {"directions": 16, "optimizer": "adam"}),
    "spsa 16, sign": (ADAM, {"directions": 16, "optimizer": "sign"}),
    "spsa 16, muon": (NORMALISED, {"directions": 16, "optimizer": "muon"}),
    "low-rank 16, muon (ZO-Muon)": (NORMALISED, {"directions": 16, "optimizer": "muon", "noise": "low_rank"}),
    "low-rank (LOZO)": (SGD_1, {"noise": "low_rank"}),
    "sparse (Sparse-MeZO)": (SGD_1, {"sparsity": 0.75}),
    "blocks of layers": (SGD_1, {"noise_blocks": 2}),
    "one-sided 16, adam": (ADAM, {"directions": 16, "estimator": "one_sided", "optimizer": "adam"}),
    "fzoo 8": (NORMALISED, {"directions": 8, "estimator": "fzoo"}),
    "es 16": (NORMALISED, {"directions": 16, "estimator": "es"}),
    "es 16, ranks": (NORMALISED, {"directions": 16, "estimator": "es", "es": {"shaping": "rank"}}),
    "svrg": (SGD_1, {"estimator": "svrg"}),
    "hizoo 4": (SGD_16, {"directions": 4, "estimator": "hizoo", "optimizer": "hizoo"}),
    "adaptive eps": (SGD_1, {"estimator": "adaptive"}),
    "rademacher 16, adam": (ADAM, {"directions": 16, "noise": "rademacher", "optimizer": "adam"}),
    "sphere 16, adam": (ADAM, {"directions": 16, "noise": "sphere", "optimizer": "adam"}),
    "jvp 16, adam": (ADAM, {"directions": 16, "estimator": "jvp", "optimizer": "adam"}),
    "LoRA-FA, spsa 16, adam": (ADAM, {"directions": 16, "optimizer": "adam", "tuning": "lora_fa"}),
    "EVA, one-sided 16, adam": (ADAM, {**EVA, "directions": 16}),
    "EVA, one-sided 4, adam, everywhere": (ADAM, {**EVA, "directions": 4, "scope": "everywhere"}),
    "one-sided 4, adam, everywhere": (
        ADAM, {"directions": 4, "estimator": "one_sided", "optimizer": "adam", "scope": "everywhere"},
    ),
    "lens": (FIRST_ORDER, LENS),
    "backpropagation": (FIRST_ORDER, {"first_order": True}),
    "backpropagation everywhere": (FIRST_ORDER, {"first_order": True, "scope": "everywhere"}),
}  # fmt: skip
# Name -> steps, learning rate: of what is best for a few steps (`tune`), half or less, since that diverges over many.
FINALISTS = {
    "EVA, one-sided 16, adam": (600, 4e-3), "EVA, one-sided 4, adam, everywhere": (300, 4e-3),
    "one-sided 16, adam": (600, 4e-3), "MeZO": (1500, 2e-3), "lens": (300, 3e-3), "backpropagation": (300, 1e-3),
    "one-sided 4, adam, everywhere": (300, 4e-3), "MeZO everywhere": (1000, 1e-3),
    "backpropagation everywhere": (300, 1e-3),
}  # fmt: skip
PARTS = ("tune", "screen", "final", "reference")
TASKS = {"screen": ("sst2", "trec"), "final": ("sst2", "trec", "mr", "imdb"), "reference": ("sst2", "trec", "mr")}
REFERENCE = "MeZO everywhere"
TUNE_TASK = "sst2"


class Kept:
    """Finished parts, a line each: rates of `tune`, outcomes of cells."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self, part: str) -> list[dict[str, Any]]:
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        return [row for row in map(json.loads, text.splitlines()) if row["part"] == part]

    def add(self, part: str, row: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"part": part, **row}) + "\n")


def settings(method: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    slow = method.get("directions", 1) > 1 or method.get("first_order") or method is LENS
    shared = {
        "model": str(options.model), "max_train_samples": 1000, "max_eval_samples": 500, "max_length": 256,
        "target_modules": ["q_proj", "k_proj", "v_proj", "out_proj"], "num_steps": 100_000,
        "eval_steps": 25 if slow else 100, "num_threads": options.threads, "estimator": "spsa", "optimizer": "sgd",
        "directions": 1, "lr_scheduler_type": "constant", "tuning": "lora", "init_lora_weights": "kaiming", **method,
    }  # fmt: skip
    return {name: value for name, value in shared.items() if not (method is LENS and name == "directions")}


def falling(name: str) -> dict[str, Any]:
    """Settings of a finalist: its steps, the learning rate falling to zero over them, forty evaluations."""
    steps, rate = FINALISTS[name]
    return {"num_steps": steps, "learning_rate": rate, "lr_scheduler_type": "linear", "eval_steps": max(1, steps // 40)}


def task(name: str, options: argparse.Namespace) -> dict[str, Any]:
    folder = options.data / name
    return {
        "task": name, "train_data": str(folder / "train.jsonl.gz"),
        "test_data": str(folder / "test.jsonl.gz"), "test_samples": 1000,
    } | ({"fields": ["text=sentence"]} if name == "sst2" else {})  # fmt: skip


def tune(options: argparse.Namespace, kept: Kept) -> None:
    known = {row["method"] for row in kept.rows("tune")}
    for name in options.methods:
        if name in known:
            continue
        rates, method = METHODS[name]
        common, path = settings(method, options), options.output / "tune" / f"{name}.toml"
        # `first_order` belongs to a method; a sweep has only points, so it is one of the grid's names.
        grid = {"learning_rate": rates} | ({"first_order": [True]} if common.pop("first_order", False) else {})
        steps = options.tune_steps if common["eval_steps"] == 100 else options.tune_steps // 4
        study = {
            "output_dir": str(path.with_suffix("")), "budget": {"steps": steps}, "settings": common,
            "tasks": {TUNE_TASK: task(TUNE_TASK, options)}, "grid": grid,
        }  # fmt: skip
        rows = run_sweep(read_study(_written(path, study)))
        found = {re.findall(r"learning_rate=([^,]+)", row[2])[0]: [float(row[3]), int(row[4])] for row in rows}
        kept.add("tune", {"method": name, "learning_rate": float(next(iter(found))), "loss and steps": found})
        print(name, found, flush=True)


def compare(part: str, methods: list[str], budget: dict[str, float], options: argparse.Namespace, kept: Kept) -> None:
    """One comparison a task; cells that are kept are put where it looks for finished ones."""
    rates = {row["method"]: row["learning_rate"] for row in kept.rows("tune")}
    for name in [name for name in TASKS[part] if name in options.tasks]:
        chosen = {m: settings(METHODS[m][1], options) for m in methods}
        for method in methods:
            if part == "screen":
                chosen[method] |= {"learning_rate": rates[method]}
            elif part == "final":
                chosen[method] |= falling(method)
            else:
                chosen[method] |= {"learning_rate": options.reference_rate, "eval_steps": 500}
        study = read_study(_written(options.output / part / f"{name}.toml", {
            "output_dir": str(options.output / part), "seeds": options.seeds, "budget": budget, "methods": chosen,
            "tasks": {name: task(name, options)},
        }))  # fmt: skip
        done = {(row["method"], row["task"], row["seed"]): row for row in kept.rows(part)}
        for cell in study.cells:
            if (row := done.get((cell.method, cell.task, cell.seed))) and not cell.outcome.is_file():
                cell.folder.path.mkdir(parents=True, exist_ok=True)
                write_json(cell.outcome, row)
        for outcome in run_comparison(study):
            if (outcome["method"], outcome["task"], outcome["seed"]) not in done:
                kept.add(part, outcome)
                accuracy = (outcome["test"] or {}).get("accuracy")
                print(part, outcome["task"], outcome["method"], outcome["seed"], accuracy, outcome["steps"], flush=True)


def _written(path: Path, study: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps(study), encoding="utf-8")
    return path


def parts(options: argparse.Namespace) -> Iterator[str]:
    """Do each part; gives its name before."""
    kept = Kept(options.results)
    if "tune" in options.parts:
        yield "tune"
        tune(options, kept)
    if "screen" in options.parts:
        yield "screen"
        compare("screen", options.methods, {"seconds": options.seconds}, options, kept)
    if "final" in options.parts:
        yield "final"
        finalists = [name for name in FINALISTS if name in options.methods]
        compare("final", finalists, {"steps": max(steps for steps, _ in FINALISTS.values())}, options, kept)
    if "reference" in options.parts:
        yield "reference"
        compare("reference", [REFERENCE], {"steps": options.reference_steps}, options, kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS["final"]), choices=TASKS["final"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tune-steps", type=int, default=1400, help="of a sweep; a quarter with many directions")
    parser.add_argument("--seconds", type=float, default=20, help="of training, for each cell of `screen`")
    parser.add_argument("--reference-steps", type=int, default=20_000)
    parser.add_argument("--reference-rate", type=float, default=2.5e-4, help="learning rate of `reference`")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", type=Path, default=Path("../shared/models/opt-imdb-4m"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--results", type=Path, default=Path("docs/results.jsonl"))
    options = parser.parse_args()
    set_up_logging()
    logging.getLogger("zotune").setLevel(logging.WARNING)
    for name in parts(options):
        print(f"== {name}", flush=True)


if __name__ == "__main__":
    main()
