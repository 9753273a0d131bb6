"""Backpropagation behind kept prompts beside that over whole sequences, and beside a forward pass: a table of
docs/performance.md.

A Llama of SmolLM2-135M's shape with random weights, LoRA of rank 8 on q_proj and v_proj in scope activated, examples
with two labels of one token. `python benchmarks/backprop.py --write docs/performance.md` takes ten minutes on a core.
Times are seconds of the processor, so that others on the machine count little, and taken in turn in one process
(A B C A B C ...), with prompts already kept; the peak of memory (the resident set) is that of a fresh process for each,
without what building the model took.
"""

import argparse
import multiprocessing
import platform
import re
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from zotune.adapter.forms import initial_theta
from zotune.adapter.spec import LoraSpec
from zotune.engine.memory import reset_peak_memory
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.zo.objectives import cross_entropy
from zotune.zo.protocol import AT_THETA, Example, Theta

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PASSES = {
    "forward": "forward alone, behind kept prompts",
    "suffix": "forward and backward, behind kept prompts",
    "whole": "forward and backward, whole sequences",
}
REPEATS = 3  # of a pass, in the process whose memory is read


class Job:
    """An engine, a batch, and the three passes over it."""

    def __init__(self, options: argparse.Namespace, dtype: str) -> None:
        torch.set_num_threads(options.threads)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=options.layers,
            num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype])
        rng = np.random.default_rng(0)
        invocation = tuple(range(1000, 1000 + options.suffix_tokens))
        prompts = rng.integers(2000, 40000, size=(options.batch_size, options.prompt_tokens))
        self.batch = [Example(tuple(map(int, p)), invocation, ((7,), (8,)), i % 2) for i, p in enumerate(prompts)]
        self.engine = TorchEngine(model, LoraSpec(8, 16.0, ("q_proj", "v_proj"), invocation), PrefixCache(16e9))
        self.theta = initial_theta(self.engine.tensor_shapes, 0)
        reset_peak_memory()

    def forward(self) -> None:
        self.engine.score(self.theta, [AT_THETA], self.batch)

    def suffix(self) -> Theta:
        return cross_entropy.gradient(self.engine.gradient, self.theta, self.batch)[1]

    def whole(self) -> Theta:
        return cross_entropy.gradient(self.engine.plain.gradient, self.theta, self.batch)[1]


def seconds(job: Job, rounds: int) -> dict[str, list[float]]:
    """Of each pass, in turn; the first round, which fills the cache, is left out."""
    passes: dict[str, Callable[[], object]] = {name: getattr(job, name) for name in PASSES}
    times: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(1 + rounds):
        for name, work in passes.items():
            start = time.process_time()
            work()
            times[name].append(time.process_time() - start)
            print(f"{name}: {times[name][-1]:.3f} s", flush=True)
    return {name: values[1:] for name, values in times.items()}


def difference(job: Job) -> float:
    """Of the two gradients, over the size of the second."""
    ours, expected = job.suffix(), job.whole()
    squares = sum(float(np.square(ours[name] - expected[name]).sum()) for name in expected)
    return float((squares / sum(float(np.square(value).sum()) for value in expected.values())) ** 0.5)


def peak_bytes(options: argparse.Namespace, dtype: str, name: str) -> int:
    job = Job(options, dtype)
    for _ in range(REPEATS):
        getattr(job, name)()
    return job.engine.peak_memory_bytes()


def processor() -> str:
    """Its name, and whether it has instructions for products in bfloat16."""
    path = Path("/proc/cpuinfo")
    fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line) if path.is_file() else {}
    known = {key.strip(): value.strip() for key, value in fields.items()}
    flags = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in known.get("flags", "").split()]
    return f"{known.get('model name', platform.machine())} ({', '.join(flags) or 'no products in bfloat16'})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=200)
    parser.add_argument("--suffix-tokens", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--note", default="", help="what else to say of the measurement, such as what ran beside it")
    parser.add_argument("--write", type=Path, help="a page to put the table into, such as docs/performance.md")
    options = parser.parse_args()
    table = ["| dtype | pass | ratio | range | seconds | peak memory, MiB |", "|---|---|---|---|---|---|"]
    notes = []
    for dtype in options.dtypes:
        job = Job(options, dtype)
        times = seconds(job, options.rounds)
        notes.append(f"{dtype}: {difference(job):.1e}")
        del job
        for name, title in PASSES.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                peak = pool.apply(peak_bytes, (options, dtype, name))
            ratios = [a / b for a, b in zip(times[name], times["suffix"], strict=True)]
            table.append(
                f"| {dtype} | {title} | {statistics.median(ratios):.2f} | {min(ratios):.2f} - {max(ratios):.2f} | "
                f"{statistics.median(times[name]):.2f} | {peak / 2**20:,.0f} |"
            )
    table += [
        "",
        f"{options.batch_size} examples of {options.prompt_tokens} + {options.suffix_tokens} tokens, {options.layers} "
        f"layers, medians of {options.rounds} rounds. A ratio is of time, over that of forward and backward behind "
        f"kept prompts in the same round. Difference of the two gradients, relative: {', '.join(notes)}.",
        f"{processor()}, threads: {options.threads}, torch {torch.__version__}, {date.today()}"
        f"{', ' + options.note if options.note else ''}",
    ]
    print("\n".join(["", *table]))
    if options.write:
        marked = re.compile(r"(<!-- backprop -->\n).*?(<!-- /backprop -->)", re.DOTALL)
        text = options.write.read_text(encoding="utf-8")
        options.write.write_text(marked.sub(lambda m: m[1] + "\n".join(table) + "\n" + m[2], text), encoding="utf-8")


if __name__ == "__main__":
    main()
