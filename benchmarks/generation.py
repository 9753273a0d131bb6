"""The pace of generation: a population's texts against transformers' own, and scope activated against everywhere.

    python benchmarks/generation.py                               # a quarter of an hour on one core
    python benchmarks/generation.py --write docs/performance.md

SmolLM2-135M-Instruct (`--model smollm2`) in bfloat16, LoRA r8 on q and v. First, 16 probes x 16 gsm8k questions go on
greedily with 32 tokens each. The other side is `generate` of transformers on the bare model with the same rows in one
batch, every prompt as often as there are probes: no adapter, and a prompt's tokens computed for each row. The pace of
the new tokens alone leaves out what a call with one new token takes. Then both scopes with IMDB prompts cut to 500
tokens, nothing kept from before. Sides take turns in one process; a ratio is of neighbouring turns.
"""

import argparse
import gzip
import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from smollm2 import processor
from transformers import GenerationConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "runs"))
from page import put

from zotune.adapter.forms import initial_theta
from zotune.adapter.spec import LoraSpec
from zotune.assemble.model import model_path
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.loading import load_model, load_tokenizer
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.zo.protocol import Example, Probe, Sampling

DATA = Path(__file__).parents[1] / "../shared/data"
Side = Callable[[int], None]
"""Generates so many tokens a row."""


class Rows:
    """Prompts and probes, and the sides that go on with them."""

    def __init__(self, options: argparse.Namespace, task: str, num_probes: int, num_prompts: int, most: int) -> None:
        self.path = model_path("smollm2")
        tokenizer = load_tokenizer(self.path)
        self.invocation = tuple(tokenizer("\nAnswer:" if task == "gsm8k" else " It was").input_ids)
        field = "question" if task == "gsm8k" else "text"
        with gzip.open(options.data / task / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
            tokens = (tuple(tokenizer(json.loads(line)[field]).input_ids) for line in lines)
            kept = (ids[:most] for ids in tokens if task == "gsm8k" or len(ids) >= most)
            self.prompts = [
                Example(ids, self.invocation, ((0,),)) for ids, _ in zip(kept, range(num_prompts), strict=False)
            ]
        self.probes = [Probe(seed, sign * 1e-2) for seed in range((num_probes + 1) // 2) for sign in (1, -1)][
            :num_probes
        ]

    def population(self, scope: str) -> Side:
        """All probes and prompts by the fast engine, with no prompt kept from before."""
        spec = LoraSpec(8, 16.0, ("q_proj", "v_proj"), self.invocation if scope == "activated" else None)
        engine = TorchEngine(load_model(self.path, "bfloat16", "cpu"), spec)
        theta = initial_theta(engine.tensor_shapes, 0)

        def generate(count: int) -> None:
            engine.cache = PrefixCache(16e9)
            texts = engine.generate(theta, self.probes, self.prompts, Sampling(count))
            assert engine.generation.plain_reason is None
            assert all(len(text) == count for of_probe in texts for text in of_probe)

        return generate

    def bare(self) -> Side:
        """As many rows by transformers alone."""
        model: Any = load_model(self.path, "bfloat16", "cpu")
        wholes = [example.prompt + example.invocation for example in self.prompts]
        longest = max(map(len, wholes))
        input_ids = torch.tensor([[0] * (longest - len(whole)) + list(whole) for whole in wholes])
        mask = torch.tensor([[0] * (longest - len(whole)) + [1] * len(whole) for whole in wholes])
        inputs = {
            "input_ids": input_ids.repeat(len(self.probes), 1), "attention_mask": mask.repeat(len(self.probes), 1)
        }  # fmt: skip

        def generate(count: int) -> None:
            config = GenerationConfig(
                max_new_tokens=count, do_sample=False, eos_token_id=model.config.vocab_size, pad_token_id=0
            )
            with torch.inference_mode():
                made = model.generate(**inputs, generation_config=config)
            assert made.shape[1] == longest + count

        return generate


def taken(sides: dict[str, Side], count: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of each side and round: with so many tokens a row, and without what one token takes."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for side in sides.values():
        side(1)
    for _ in range(rounds):
        for name, side in sides.items():
            at = [time.perf_counter()]
            for tokens in (1, count):
                side(tokens)
                at.append(time.perf_counter())
            whole = at[2] - at[1]
            seconds[name].append((whole, whole - (at[1] - at[0])))
            print(f"{name}: {whole:.1f} s, {seconds[name][-1][1]:.1f} s after the first token", flush=True)
    return seconds


def spread(values: list[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} - {max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--probes", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--long", type=int, default=4, help="probes, and prompts, of the comparison of the scopes")
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--write", type=Path, help="a page to put the table into")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = ["| rows | tokens/s, whole calls | over transformers | after the first token | over transformers |"]
    lines.append("|---|---|---|---|---|")
    if options.rounds and options.probes:
        rows = Rows(options, "gsm8k", options.probes, options.prompts, 10_000)
        sides = {"transformers, bare model": rows.bare()}
        sides |= {f"zotune, {scope}": rows.population(scope) for scope in ("activated", "everywhere")}
        seconds = taken(sides, options.new, options.rounds)
        num_rows = options.probes * options.prompts
        reference = seconds["transformers, bare model"]
        for name, of_side in seconds.items():
            cells = []
            for which, count in ((0, options.new), (1, options.new - 1)):
                cells.append(spread([num_rows * count / each[which] for each in of_side], 0))
                cells.append(
                    spread([there[which] / here[which] for here, there in zip(of_side, reference, strict=True)])
                )
            lines.append(f"| {name} | {' | '.join(cells)} |")
    if options.long:
        rows = Rows(options, "imdb", options.long, options.long, 500)
        seconds = taken(
            {scope: rows.population(scope) for scope in ("everywhere", "activated")}, options.new, options.rounds
        )
        pairs = zip(seconds["everywhere"], seconds["activated"], strict=True)
        ratio = spread([there[0] / here[0] for there, here in pairs])
        lines.append(
            f"\nScope activated over everywhere, {options.long} probes x {options.long} prompts of 500 tokens, "
            f"{options.new} new ones, nothing kept: {ratio} times the pace."
        )
    lines.append(f"\n{processor()}, {options.threads} thread(s), torch {torch.__version__}, {date.today()}.")
    print("\n".join(lines))
    if options.write:
        put(options.write, "generation", "\n".join(lines))


if __name__ == "__main__":
    main()
