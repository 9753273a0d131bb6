"""The pace of a population's texts on SGLang: over the same engine's without adapters, and over group after group.

    .venv-sglang/bin/python benchmarks/sglang_generation.py --model DIR --write docs/performance.md

DIR is SmolLM2-135M-Instruct as `zotune train --model smollm2` converts it, here in bfloat16, with LoRA r8 on q and v.
First, 16 probes x 16 gsm8k questions go on greedily with as many tokens each. The other side is an engine without
adapters, of the same options, with the same 256 rows in one call; in scope activated it shares the prompts' KV, too.
Then 16 probes take turns in 4 slots, with texts drawn until their first full stop, of very different lengths: in one
batch, and four by four. Last, how many texts of a probe are the same when others are generated beside it. Sides take
turns; a ratio is of neighbouring turns. Seconds are those of the processor, in the engine's process, which has one
thread: on a machine with other work, those of a clock say little.
"""

import argparse
import gzip
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import psutil
from smollm2 import processor
from transformers import AutoConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "runs"))
from page import put

from zotune.adapter.forms import initial_theta
from zotune.adapter.spec import LoraSpec
from zotune.engine.sglang.engine import SglangEngine
from zotune.engine.sglang.names import installed_version
from zotune.engine.torch.loading import load_tokenizer
from zotune.zo.protocol import AT_THETA, Example, Probe, Sampling, TokenIds

DATA = Path(__file__).parents[1] / "../shared/data"
Texts = list[list[TokenIds]]


class Rows:
    """Prompts, probes and the tokens that end a sentence."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, tokenizer = options, load_tokenizer(options.model)
        self.invocation = tuple(tokenizer("\nAnswer:").input_ids)
        with gzip.open(options.data / "gsm8k/train.jsonl.gz", "rt", encoding="utf-8") as lines:
            questions = [json.loads(next(lines))["question"] for _ in range(options.prompts)]
        self.prompts = [Example(tuple(tokenizer(text).input_ids), self.invocation, ((0,),)) for text in questions]
        signs = [(seed, sign) for seed in range(options.probes) for sign in (1, -1)]
        self.probes = [Probe(seed, sign * 1e-2) for seed, sign in signs[: options.probes]]
        self.stop = tuple(token for token in range(len(tokenizer)) if "." in tokenizer.decode([token]))

    def engine(self, scope: str, num_slots: int, dtype: str) -> SglangEngine:
        """Without slots it has no adapters."""
        invocation = self.invocation if scope == "activated" else None
        spec = LoraSpec(8, 16.0, ("q_proj", "v_proj") if num_slots else (), invocation)
        config = AutoConfig.from_pretrained(self.options.model)
        return SglangEngine(
            self.options.model, config, spec, dtype=dtype, num_probes=num_slots,
            options={"max_total_tokens": 60_000},
        )  # fmt: skip


Side = tuple[SglangEngine, Callable[[], Texts]]


def taken(sides: dict[str, Side], rounds: int) -> dict[str, list[float]]:
    """Tokens a second of each side and round, after one round for warmth."""
    paces: dict[str, list[float]] = {name: [] for name in sides}
    for count in range(rounds + 1):
        for name, (engine, write) in sides.items():
            began = seconds(engine)
            num_tokens = sum(len(text) for of_probe in write() for text in of_probe)
            took = seconds(engine) - began
            print(f"{name}: {num_tokens} tokens in {took:.1f} s", flush=True)
            if count:
                paces[name].append(num_tokens / took)
    return paces


def seconds(engine: SglangEngine) -> float:
    """Of a processor, in the engine's process so far."""
    (rank,) = engine._ranks
    times = psutil.Process(rank._process.pid).cpu_times()
    return float(times.user + times.system)


def ratio(paces: Sequence[float], others: Sequence[float]) -> str:
    return spread([pace / other for pace, other in zip(paces, others, strict=True)], 2)


def spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} - {max(values):.{digits}f})"


def over_plain(rows: Rows, scope: str) -> list[str]:
    """A row of the table for the engine without adapters, and one for the population."""
    sampling, num_probes = Sampling(rows.options.new), len(rows.probes)
    plain, population = rows.engine(scope, 0, "bfloat16"), rows.engine(scope, num_probes, "bfloat16")
    theta = initial_theta(population.tensor_shapes, 0)
    try:
        paces = taken({
            "without": (plain, lambda: plain.generate({}, [AT_THETA], rows.prompts * num_probes, sampling)),
            "population": (population, lambda: population.generate(theta, rows.probes, rows.prompts, sampling)),
        }, rows.options.rounds)  # fmt: skip
    finally:
        plain.close()
        population.close()
    found = ratio(paces["population"], paces["without"])
    return [
        f"| {scope}: no adapters, {num_probes * len(rows.prompts)} rows | {spread(paces['without'], 0)} | 1 |",
        f"| {scope}: {num_probes} probes x {len(rows.prompts)} prompts | {spread(paces['population'], 0)} | {found} |",
    ]


def over_groups(rows: Rows, num_slots: int) -> list[str]:
    """The same for texts of different lengths and fewer slots than probes."""
    engine = rows.engine("activated", num_slots, "bfloat16")
    theta = initial_theta(engine.tensor_shapes, 0)
    sampling = Sampling(2 * rows.options.new, temperature=1.0, seed=1, stop_token_ids=rows.stop)
    groups = [rows.probes[start : start + num_slots] for start in range(0, len(rows.probes), num_slots)]
    lengths: list[int] = []

    def in_one() -> Texts:
        texts = engine.generate(theta, rows.probes, rows.prompts, sampling)
        lengths[:] = [len(text) for of_probe in texts for text in of_probe]
        return texts

    def in_groups() -> Texts:
        return [of_probe for some in groups for of_probe in engine.generate(theta, some, rows.prompts, sampling)]

    try:
        paces = taken({"groups": (engine, in_groups), "one batch": (engine, in_one)}, rows.options.rounds)
    finally:
        engine.close()
    quartiles = ", ".join(f"{value:.0f}" for value in statistics.quantiles(lengths, n=4))
    where = f"{num_slots} slots, texts of {min(lengths)} - {max(lengths)} tokens (quartiles {quartiles})"
    return [
        f"| {where}: group after group | {spread(paces['groups'], 0)} | 1 |",
        f"| the same: one batch | {spread(paces['one batch'], 0)} | {ratio(paces['one batch'], paces['groups'])} |",
    ]


def in_company(rows: Rows, dtype: str) -> str:
    """How many of a probe's texts are the same where other probes' are generated beside it, and where none is."""
    engine = rows.engine("activated", 4, dtype)
    theta = initial_theta(engine.tensor_shapes, 0)
    sampling = Sampling(rows.options.new, temperature=1.0, seed=1)
    try:
        together = engine.generate(theta, rows.probes, rows.prompts, sampling)
        last = len(rows.probes) - 1
        alone = {index: engine.generate(theta, [rows.probes[index]], rows.prompts, sampling)[0] for index in (0, last)}
    finally:
        engine.close()
    same = sum(there == here for index in alone for there, here in zip(together[index], alone[index], strict=True))
    return f"{same} of {2 * len(rows.prompts)} in {dtype}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--probes", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument(
        "--slots", type=int, default=4, help="of the comparison with group after group; 0: leave it out"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scopes", nargs="*", default=["activated"])
    parser.add_argument("--company", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--write", type=Path, help="a page to put the table into")
    options = parser.parse_args()
    rows = Rows(options)
    lines = ["| rows | tokens a second of the processor | ratio |", "|---|---|---|"]
    for scope in options.scopes:
        lines += over_plain(rows, scope)
    if options.slots:
        lines += over_groups(rows, options.slots)
    if options.company:
        found = "; ".join(in_company(rows, dtype) for dtype in options.company)
        lines.append(f"\nTexts of {options.new} drawn tokens that are the same alone and in company: {found}.")
    lines.append(f"\n{processor()}, one thread, SGLang {installed_version()}, bfloat16, {date.today()}.")
    print("\n".join(lines))
    if options.write:
        put(options.write, "sglang_generation", "\n".join(lines))


if __name__ == "__main__":
    main()
