"""The study of docs/results.md: every method at its best learning rate, at equal seconds, on small real tasks.

First each method's learning rate is swept on one task and seed (successive halving on held-out loss), then all methods
train on all tasks and seeds for the same seconds, and the best adapter by held-out loss is tested. Stop it at any
moment and run it again: finished parts are kept. Data and model: folders as in runs/imdb_opt_imdb_4m.sh.

    python runs/study.py OUTPUT --write docs/results.md
"""

import argparse
import json
import logging
import re
from pathlib import Path
from typing import Any

import tomli_w

from zotune.compare import HEADING, run_comparison, table
from zotune.console import set_up_logging
from zotune.plots import plot_comparison
from zotune.study import markdown, read_study
from zotune.sweep import run_sweep

SGD_1, SGD_16 = [5e-4, 1e-3, 2e-3, 4e-3, 8e-3], [2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2]
ADAM, NORMALISED = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2], [1e-3, 4e-3, 1.6e-2, 6.4e-2, 0.25]
# Name -> learning rates to try, settings.
METHODS: dict[str, tuple[list[float], dict[str, Any]]] = {
    "MeZO everywhere": (SGD_1, {"scope": "everywhere"}),
    "MeZO": (SGD_1, {}),
    "spsa 4": (SGD_16, {"directions": 4}),
    "spsa 16": (SGD_16, {"directions": 16}),
    "spsa 16, momentum": (SGD_1, {"directions": 16, "momentum": 0.9}),
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
    "svrg": (SGD_1, {"estimator": "svrg"}),
    "hizoo 4": (SGD_16, {"directions": 4, "estimator": "hizoo", "optimizer": "hizoo"}),
    "adaptive eps": (SGD_1, {"estimator": "adaptive"}),
    "rademacher 16, adam": (ADAM, {"directions": 16, "noise": "rademacher", "optimizer": "adam"}),
    "LoRA-FA, spsa 16, adam": (ADAM, {"directions": 16, "optimizer": "adam", "peft_type": "lora_fa"}),
    "backpropagation, adam": ([5e-4, 1e-3, 2e-3, 4e-3, 8e-3], {"first_order": True}),
    "backpropagation, adam, everywhere": (
        [5e-4, 1e-3, 2e-3, 4e-3, 8e-3], {"first_order": True, "scope": "everywhere"}
    ),
}  # fmt: skip


def settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "model": str(options.model), "max_train_samples": 1000, "max_eval_samples": 500, "max_length": 256,
        "target_modules": ["q_proj", "k_proj", "v_proj", "out_proj"], "num_steps": 100_000,
        "eval_steps": options.eval_steps, "num_threads": options.threads,
    }  # fmt: skip


def task(name: str, options: argparse.Namespace) -> dict[str, Any]:
    folder = options.data / name
    return {"task": name, "train_data": str(folder / "train.jsonl.gz")} | (
        {"fields": ["text=sentence"]} if name == "sst2" else {}
    )


def best_learning_rate(name: str, options: argparse.Namespace) -> float:
    """By a sweep on the first task; kept in a file."""
    grid, method = METHODS[name]
    found = options.output / "sweep" / f"{name}.json"
    if not found.is_file():
        path = options.output / "sweep" / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        first, few = options.tune_task, method.get("directions", 1) == 1
        # `first_order` belongs to a method; a sweep has only points, so it is one of the grid's names.
        study = {
            "output_dir": str(path.with_suffix("")), "budget": {"steps": options.tune_steps // (1 if few else 4)},
            "settings": settings(options) | {k: v for k, v in method.items() if k != "first_order"},
            "tasks": {first: task(first, options)},
            "grid": {"learning_rate": grid} | ({"first_order": [True]} if method.get("first_order") else {}),
        }  # fmt: skip
        path.write_text(tomli_w.dumps(study), encoding="utf-8")
        rows = run_sweep(read_study(path))
        print(markdown(("task", "seed", "point", "lowest loss", "steps"), rows), flush=True)
        rate = float(re.findall(r"learning_rate=([^,]+)", rows[0][2])[0])
        found.write_text(json.dumps({"learning_rate": rate, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return float(json.loads(found.read_text(encoding="utf-8"))["learning_rate"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--tasks", nargs="+", default=["sst2", "imdb", "mr", "trec"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=60, help="of training, for each method, task and seed")
    parser.add_argument("--tune-steps", type=int, default=2000, help="of each sweep; a quarter with many directions")
    parser.add_argument("--tune-task", default="sst2")
    parser.add_argument("--eval-steps", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", type=Path, default=Path("../shared/models/opt-imdb-4m"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--write", type=Path, help="a page to put the table into, such as docs/results.md")
    options = parser.parse_args()
    set_up_logging()
    logging.getLogger("zotune").setLevel(logging.WARNING)
    options.output.mkdir(parents=True, exist_ok=True)
    methods = {
        name: METHODS[name][1] | {"learning_rate": best_learning_rate(name, options)} for name in options.methods
    }
    tasks = {
        name: task(name, options) | {"test_data": str(options.data / name / "test.jsonl.gz"), "test_samples": 1000}
        for name in options.tasks
    }
    study = {
        "output_dir": str(options.output / "runs"), "seeds": options.seeds, "budget": {"seconds": options.seconds},
        "settings": settings(options), "tasks": tasks,
        "methods": methods,
    }  # fmt: skip
    path = options.output / f"compare-{'-'.join(options.tasks)}.toml"
    path.write_text(tomli_w.dumps(study), encoding="utf-8")
    cells = []
    for cell in run_comparison(read_study(path)):
        cells.append(cell)
        print(*table([cell])[0], sep=" | ", flush=True)
    text = markdown(HEADING, table(cells))
    print(text)
    groups: dict[str, dict[str, list[Path]]] = {}
    for cell in cells:
        groups.setdefault(cell.task, {}).setdefault(cell.method, []).append(cell.folder.path)
    plot_comparison(groups, options.output)
    if options.write:
        marked = re.compile(r"(<!-- study -->\n).*?(<!-- /study -->)", re.DOTALL)
        page = options.write.read_text(encoding="utf-8")
        options.write.write_text(marked.sub(lambda m: m[1] + text + m[2], page), encoding="utf-8")


if __name__ == "__main__":
    main()
