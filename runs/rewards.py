"""Train the tasks of runs/reward_tasks.py on their rewards, and put the results beside those of GRPO.

    python runs/rewards.py --task json --seed 0           # adds to docs/rewards.jsonl
    python runs/rewards.py --write docs/results.md        # the table, from docs/rewards.jsonl

Lines are those of runs/grpo.py, which writes into the same file: seconds of training so far, by the clock and of the
processor, without the start and without evaluations, and the held-out reward of greedy completions. Settings are
zotune's defaults for SmolLM2 but for what is named here; the learning rate is constant, as there, so that every line is
the end of a run of that length.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from page import put
from reward_tasks import TASKS, records

from zotune import Callback, mezo_finetune
from zotune.run.metrics import EvalEvent, StepEvent
from zotune.run.trainer import MeZOTrainer

KEPT = Path(__file__).parents[1] / "docs" / "rewards.jsonl"
NAMES = {
    ("es", 1.0): "zotune", ("grpo", 1.0): "GRPO (TRL), temperature 1", ("grpo", 0.7): "GRPO (TRL), temperature 0.7",
}  # fmt: skip
DTYPES = "bfloat16", "float32"
EQUAL = 300  # seconds of the processor, at which methods are compared


class Record(Callback):
    """Writes a line at every evaluation, has one every so many seconds of training, and ends it in time."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._seconds = self._processor = 0.0
        self._next = options.eval_seconds
        self._rewards: list[float] = []

    def on_train_begin(self, trainer: MeZOTrainer) -> None:
        self._trainer = trainer
        self._began = time.process_time()

    def on_step_end(self, event: StepEvent) -> None:
        self._seconds += event.step_time_s
        self._processor += time.process_time() - self._began
        self._rewards.append(event.measured["reward"])
        spent = self._processor if self._options.clock == "processor" else self._seconds
        self._trainer.should_stop = spent >= self._options.seconds
        if spent >= self._next or self._trainer.should_stop:
            self._next += self._options.eval_seconds
            self._write(event.step, self._trainer.evaluate().measured["reward"])
        self._began = time.process_time()

    def on_evaluate(self, event: EvalEvent) -> None:
        if event.step == 0:
            self._write(0, event.measured["reward"])
        self._began = time.process_time()

    def _write(self, step: int, reward: float) -> None:
        options = self._options
        line = {
            "task": options.task, "method": "es", "dtype": options.dtype, "seed": options.seed, "step": step,
            "seconds": round(self._seconds, 1), "processor_seconds": round(self._processor, 1), "test_reward": reward,
            "train_reward": statistics.mean(self._rewards) if self._rewards else None,
            "peak_memory_bytes": self._trainer.engine.peak_memory_bytes(),
        }  # fmt: skip
        self._rewards = []
        print(json.dumps(line), flush=True)
        with options.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def train(options: argparse.Namespace) -> None:
    task, (train_rows, test_rows) = TASKS[options.task], records(options.task)
    with tempfile.TemporaryDirectory() as folder:
        mezo_finetune(
            "smollm2", train_rows, test_rows, reward_funcs=task.reward, max_new_tokens=task.max_new_tokens,
            num_steps=100_000, eval_steps=100_000, lr_scheduler_type="constant", seed=options.seed,
            num_threads=options.threads, dtype=options.dtype, output_dir=f"{folder}/run", callbacks=[Record(options)],
            **options.settings,
        )  # fmt: skip


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Means over seeds of the held-out rewards, in percent: at the start, after about EQUAL seconds, at the end.

    Rows of one dtype are of one kind of processor: seconds are to be compared between those alone.
    """
    names = (
        "task",
        "method",
        "dtype",
        "seeds",
        "before, %",
        f"about {EQUAL} s, %",
        "after, %",
        "seconds",
        "steps",
        "peak MiB",
    )
    rows = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for task in TASKS:
        for ((method, temperature), name), dtype in itertools.product(NAMES.items(), DTYPES):
            runs: dict[int, list[dict[str, Any]]] = {}
            for line in lines:
                own = line.get("method", "grpo"), line.get("temperature", 1.0), line.get("dtype", "bfloat16")
                if line["task"] == task and own == (method, temperature, dtype):
                    runs.setdefault(line["seed"], []).append(line)
            if not runs:
                continue
            first, last = ([run[place] for run in runs.values()] for place in (0, -1))
            near = [min(run, key=lambda line: abs(line["processor_seconds"] - EQUAL)) for run in runs.values()]
            after = [100 * line["test_reward"] for line in last]
            spread = f" ± {statistics.stdev(after):.1f}" if len(after) > 1 else ""
            memory = max(line.get("peak_memory_bytes", 0) for line in last) / 2**20
            cells = [
                task, name, dtype, str(len(runs)), _percent(first), _percent(near),
                f"{statistics.mean(after):.1f}{spread}",
                f"{statistics.mean(line['processor_seconds'] for line in last):.0f}",
                f"{statistics.mean(line['step'] for line in last):.0f}", f"{memory:,.0f}" if memory else "-",
            ]  # fmt: skip
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _percent(lines: Sequence[dict[str, Any]]) -> str:
    return f"{100 * statistics.mean(line['test_reward'] for line in lines):.1f}"


def write(page: Path) -> None:
    lines = [json.loads(line) for line in KEPT.read_text("utf-8").splitlines()]
    put(page, "rewards", table(lines))


def value_of(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--output", type=Path, default=KEPT, help="a file that lines are appended to")
    parser.add_argument("--seconds", type=float, default=600.0, help="of training")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="which seconds are meant")
    parser.add_argument("--eval-seconds", type=float, default=120.0, help="of training, between two lines")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of zotune train")
    parser.add_argument("--write", type=Path, help="put the table into this page, and train nothing")
    options = parser.parse_args()
    options.settings = {name: value_of(text) for name, _, text in (pair.partition("=") for pair in options.set)}
    if options.write:
        write(options.write)
    elif options.task:
        train(options)
    else:
        parser.error("name a --task, or a page to --write")


if __name__ == "__main__":
    main()
