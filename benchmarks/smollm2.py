"""The pace of a real model: SmolLM2-135M-Instruct (`--model smollm2`) on this machine, a table of docs/performance.md.

    python benchmarks/smollm2.py --write docs/performance.md      # a quarter of an hour on one core

Steps are taken in turn in one process (A B A B ...), on IMDB prompts cut to 300 tokens where ../shared/data is there,
with prompts already kept. The other side is MeZO as its paper's code takes a step (baseline_mezo.py), or the same step
in another precision, or scoring alone. Memory is the peak of a process of its own; the start is that of the command,
with files in the system's cache and the model converted.
"""

import argparse
import gzip
import json
import multiprocessing
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from baseline_mezo import BaselineMezo

sys.path.insert(0, str(Path(__file__).parents[1] / "runs"))
from page import put

from zotune.adapter.forms import initial_theta
from zotune.adapter.spec import LoraSpec
from zotune.assemble.model import model_path
from zotune.engine.memory import peak_resident_bytes, reset_peak_memory
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.lens import Lens
from zotune.engine.torch.loading import load_model, load_tokenizer
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.zo.estimators import OneSided, Spsa
from zotune.zo.noise import GAUSSIAN
from zotune.zo.noise_ahead import AHEAD
from zotune.zo.objectives import cross_entropy
from zotune.zo.optimizers import Adam, Sgd
from zotune.zo.protocol import AT_THETA, Example
from zotune.zo.updates import Slopes

ROOT = Path(__file__).parents[1]
PARTS = ("steps", "memory", "start")
PASSES = {
    "scoring": "inference: scoring the batch, prompts kept",
    "step": "a step of 16 directions",
    "backprop": "backpropagation through the suffix",
    "whole": "backpropagation of whole sequences",
    "lens": "the lens",
    "lens, whole": "the lens, scope everywhere",
}


class Job:
    """The model, a batch, and the passes over it."""

    def __init__(self, options: argparse.Namespace, dtype: str, scope: str = "activated", lens: bool = False) -> None:
        torch.set_num_threads(options.threads)
        path = model_path("smollm2")
        tokenizer = load_tokenizer(path)
        invocation = tuple(tokenizer(" It was").input_ids)
        labels = tuple(tuple(tokenizer(word).input_ids) for word in (" terrible", " great"))
        with gzip.open(options.data / "imdb" / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
            records = [json.loads(line) for line, _ in zip(lines, range(options.batch_size), strict=False)]
        self.batch = [
            Example(tuple(tokenizer(r["text"]).input_ids[: options.prompt_tokens]), invocation, labels, r["label"])
            for r in records
        ]
        self.model = load_model(path, dtype, "cpu")
        targets = ("o_proj", "down_proj") if lens else ("q_proj", "v_proj")
        kind = "lora_fa" if lens else "lora"
        spec = LoraSpec(8, 16.0, targets, invocation if scope == "activated" else None, peft_type=kind)
        self.engine: Any = TorchEngine(self.model, spec, PrefixCache(16e9))
        if lens:
            self.engine.layers.lens = Lens({}, {})  # attention is computed again in every block
        self.theta: Any = initial_theta(self.engine.tensor_shapes, 0)
        self.state: Any = {}
        self.count = 0

    def step(self, directions: int) -> None:
        """MeZO's with one direction, else the default's."""
        estimator = Spsa(1e-2) if directions == 1 else OneSided(1e-2)
        optimizer = Sgd() if directions == 1 else Adam()
        self.state = self.state or optimizer.init(self.theta)
        self.count += 1
        seeds = [[count * 1000 + k for k in range(directions)] for count in (self.count, self.count + 1)]
        probes = estimator.ask(seeds[0])
        AHEAD.start(GAUSSIAN, seeds[1], self.theta)
        losses = cross_entropy(self.engine, self.theta, probes, self.batch).values
        slopes = Slopes(tuple(estimator.tell(probes, losses)))
        self.theta, self.state = optimizer.update(self.theta, self.state, slopes, 1e-5)

    def score(self) -> None:
        """As many points as a step of 16 directions has, with an adapter that stays."""
        cross_entropy(self.engine, self.theta, [AT_THETA] * 17, self.batch)

    def backprop(self) -> None:
        cross_entropy.gradient(self.engine.gradient, self.theta, self.batch)

    def lens(self) -> None:
        cross_entropy.gradient(self.engine.lens_gradient, self.theta, self.batch)

    def close(self) -> None:
        self.engine.close()


def in_turn(ours: Callable[[], object], other: Callable[[], object], rounds: int, repeats: int) -> dict[str, float]:
    """Seconds of each, and the ratio other / ours of neighbouring turns."""
    times: dict[str, list[float]] = {"ours": [], "other": []}
    ours()
    other()
    for _ in range(rounds):
        for side, work, count in (("other", other, 1), ("ours", ours, repeats)):
            began = time.perf_counter()
            for _ in range(count):
                work()
            times[side].append((time.perf_counter() - began) / count)
    ratios = [b / a for a, b in zip(times["ours"], times["other"], strict=True)]
    return {
        "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios),
        "ours": statistics.median(times["ours"]), "other": statistics.median(times["other"]),
    }  # fmt: skip


def paces(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The rows of time."""
    job = Job(options, "bfloat16")
    baseline = BaselineMezo(load_model(model_path("smollm2"), "bfloat16", "cpu"), 8, 16, ("q_proj", "v_proj"))
    mezo = lambda: baseline.step(job.batch, 0, 1e-2, 1e-5)  # noqa: E731
    found = {
        "activated, 1 direction: MeZO's step over it": in_turn(lambda: job.step(1), mezo, options.rounds, 5),
        "activated, 16 directions: MeZO's step over it": in_turn(lambda: job.step(16), mezo, options.rounds, 1),
    }
    job.state = {}
    found["activated, 16 directions: scoring over it"] = in_turn(lambda: job.step(16), job.score, options.rounds, 1)
    exact = Job(options, "float32")
    found["activated, 16 directions: float32 over bfloat16"] = in_turn(
        lambda: job.step(16), lambda: exact.step(16), options.rounds, 1
    )
    exact.close()
    job.close()
    everywhere = Job(options, "bfloat16", "everywhere")
    found["everywhere, 1 direction: MeZO's step over it"] = in_turn(lambda: everywhere.step(1), mezo, options.rounds, 1)
    return found


def peak(options: argparse.Namespace, what: str, answer: Any) -> None:
    """In a process of its own: the most memory of a pass, model included."""
    whole = "whole" in what
    job = Job(options, "bfloat16", "everywhere" if whole else "activated", lens="lens" in what)
    job.score() if not whole else None
    reset_peak_memory()
    passes = {"scoring": job.score, "step": lambda: job.step(16), "backprop": job.backprop, "whole": job.backprop}
    for _ in range(2):
        passes.get(what, job.lens)()
    answer.put(peak_resident_bytes())


def peaks(options: argparse.Namespace) -> dict[str, int]:
    context, found = multiprocessing.get_context("spawn"), {}
    for what in PASSES:
        answer = context.Queue()
        process = context.Process(target=peak, args=(options, what, answer))
        process.start()
        found[what] = answer.get()
        process.join()
    return found


def starts(options: argparse.Namespace) -> list[float]:
    """Seconds from the command to its first step."""
    command = [
        sys.executable, "-c", "from zotune.cli import main; main()", "train", "--model", "smollm2", "--task", "sst2",
        "--train-data", str(options.data / "sst2" / "train.jsonl.gz"), "--num-steps", "1",
        "--num-threads", str(options.threads),
    ]  # fmt: skip
    found = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            with subprocess.Popen(
                [*command, "--output-dir", f"{folder}/run"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            ) as run:
                assert run.stderr
                for line in run.stderr:
                    if line.startswith("step 1/"):
                        found.append(time.perf_counter() - began)
    return found


def processor() -> str:
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    name = next(
        (line.split(":")[1].strip() for line in cpu.splitlines() if line.startswith("model name")), platform.machine()
    )
    return f"{name} ({', '.join(flag for flag in ('amx_bf16', 'avx512_bf16') if flag in cpu) or 'no bfloat16'})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompt-tokens", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data")
    parser.add_argument("--write", type=Path, help="a page to put the table into, such as docs/performance.md")
    options = parser.parse_args()
    rows = ["| figure | ratio | range | ours | other |", "|---|---|---|---|---|"]
    if "steps" in options.parts:
        for name, found in paces(options).items():
            rows.append(
                f"| {name} | {found['ratio']:.2f} | {found['low']:.2f} - {found['high']:.2f} | {found['ours']:.3f} s "
                f"| {found['other']:.3f} s |"
            )
    if "memory" in options.parts:
        memory = peaks(options)
        for what in [what for what in PASSES if what != "scoring"]:
            rows.append(
                f"| peak memory: {PASSES[what]}, over {PASSES['scoring']} | {memory[what] / memory['scoring']:.2f} | "
                f"| {memory[what] / 2**20:,.0f} MiB | {memory['scoring'] / 2**20:,.0f} MiB |"
            )
    if "start" in options.parts:
        began = starts(options)
        rows.append(
            f"| `zotune train --model smollm2 --task sst2` to its first step | | {min(began):.1f} - {max(began):.1f} s "
            f"| {statistics.median(began):.1f} s | |"
        )
    table = "\n".join(rows) + (
        f"\n\n{processor()}, {options.threads} thread, torch {torch.__version__}, {date.today()}; batches of "
        f"{options.batch_size} prompts of up to {options.prompt_tokens} tokens, {options.rounds} rounds."
    )
    print(table)
    if options.write:
        put(options.write, "smollm2", table)


if __name__ == "__main__":
    main()
