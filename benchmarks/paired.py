"""Whether a change made a step slower: this tree's steps against another tree's, in turn, on the same model and data.

    git worktree add /tmp/before COMMIT
    python benchmarks/paired.py /tmp/before/src

Each tree trains in a process of its own, which takes one step, or evaluates once, whenever it is told to: A B A B ...
The ratio is that of neighbouring turns, this tree over the other: its median, with the smallest and the largest.
"""

import argparse
import gzip
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from opt_models import SHAPES, make_model
from transformers import AutoTokenizer

ROWS: dict[str, dict[str, Any]] = {
    "MeZO, activated": {"scope": "activated", "estimator": "spsa", "directions": 1, "optimizer": "sgd"},
    "16 directions, Adam, activated": {"scope": "activated", "estimator": "one_sided", "directions": 16},
    "MeZO, everywhere": {"scope": "everywhere", "estimator": "spsa", "directions": 1, "optimizer": "sgd"},
    "forward mode, activated": {"scope": "activated", "estimator": "jvp", "directions": 4},
}
WORKER = """
import json, sys, time, torch
from zotune import make_trainer
settings = json.loads(sys.argv[1])
torch.set_num_threads(settings["num_threads"])
with make_trainer(**settings) as trainer:
    trainer.train_step()
    trainer.evaluate()
    print("ready", flush=True)
    for what in sys.stdin:
        began = time.perf_counter()
        trainer.train_step() if what.strip() == "step" else trainer.evaluate()
        print(time.perf_counter() - began, flush=True)
"""


class Tree:
    """A process that trains with the code of one source tree."""

    def __init__(self, source: Path, settings: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, json.dumps(settings)], env={**os.environ, "PYTHONPATH": str(source)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def wait(self) -> None:
        if self._answer() != "ready":
            raise SystemExit("a tree could not start this run")

    def seconds(self, what: str) -> float:
        assert self._process.stdin
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return float(self._answer())

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="the src folder of the other tree")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW")
    parser.add_argument("--shape", default="opt-125m", choices=SHAPES)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=310)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/imdb/train.jsonl.gz"))
    parser.add_argument("--tokenizer", type=Path, default=Path("../shared/tokenizers/gpt2"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    ours = Path(__file__).resolve().parents[1] / "src"
    with tempfile.TemporaryDirectory() as place:
        make_model(options.shape).save_pretrained(f"{place}/model")
        AutoTokenizer.from_pretrained(options.tokenizer).save_pretrained(f"{place}/model")
        with gzip.open(options.data, "rt", encoding="utf-8") as lines:
            records = [line for line, _ in zip(lines, range(2 * options.batch_size), strict=False)]
        Path(f"{place}/data.jsonl").write_text("".join(records), encoding="utf-8")
        shared = {
            "model": f"{place}/model", "task": "imdb", "train_data": f"{place}/data.jsonl", "num_steps": 1000,
            "eval_data": f"{place}/data.jsonl", "batch_size": options.batch_size, "max_length": options.max_length,
            "init_lora_weights": "kaiming", "num_threads": options.threads,
        }  # fmt: skip
        print(f"{platform.processor() or platform.machine()}, {options.threads} threads, torch {torch.__version__}")
        for name in options.rows:
            row = ROWS[name]
            trees = [
                Tree(source, {**shared, **row, "output_dir": f"{place}/{name} {index}"})
                for index, source in enumerate((ours, options.other))
            ]
            for tree in trees:
                tree.wait()
            for what in ("step", "evaluation"):
                pairs = [[tree.seconds(what) for tree in trees] for _ in range(options.rounds)]
                ratios = [here / there for here, there in pairs]
                print(
                    f"{name}, {what}: {statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f}), "
                    f"{statistics.median(here for here, _ in pairs):.2f} s",
                    flush=True,
                )
            for tree in trees:
                tree.end()


if __name__ == "__main__":
    main()
