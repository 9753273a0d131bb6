"""Speed and memory against the baseline and against plain inference: the figures of docs/performance.md.

Model shape, batch and lengths are flags. Both sides of a figure are measured in turn in this process (A B A B ...);
a ratio is that of the medians, with the smallest and largest ratio of neighbouring runs beside it. Each figure prints
a JSON line when it is done, and a table stands at the end.
"""

import argparse
import json
import platform
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from opt_models import SHAPES
from speed_bench import Bench
from speed_limits import arithmetic, limit, memory
from speed_of_cache import budgets, cold, reuse
from speed_of_steps import activated_1, activated_16, evaluation, everywhere_1, everywhere_shared, scoring

FIGURES: dict[str, Callable[[Bench], None]] = {
    "activated-1": activated_1,
    "activated-16": activated_16,
    "everywhere-1": everywhere_1,
    "everywhere-shared": everywhere_shared,
    "scoring": scoring,
    "evaluation": evaluation,
    "cold": cold,
    "reuse": reuse,
    "budgets": budgets,
    "limit": limit,
    "arithmetic": arithmetic,
    "memory": memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figures", nargs="+", default=list(FIGURES), choices=FIGURES)
    parser.add_argument("--shape", default="opt-125m", choices=SHAPES)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=300, help="prompts are cut to at most this many tokens")
    parser.add_argument("--suffix-tokens", type=int, default=8)
    parser.add_argument("--eval-examples", type=int, default=250, help="20 MB of KV each at the default shape")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/imdb/train.jsonl.gz"))
    parser.add_argument("--tokenizer", type=Path, default=Path("../shared/tokenizers/gpt2"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("benchmarks/results.jsonl"),
        help="figures so far; new ones replace theirs",
    )
    parser.add_argument("--write", type=Path, help="a page to put the table into, such as docs/performance.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench(options)
    for name in options.figures:
        FIGURES[name](bench)
    machine = f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}, {date.today()}"
    fresh = {result["figure"]: {**result, "machine": machine} for result in bench.results}
    known: dict[str, dict[str, Any]] = {}
    if options.results.is_file():
        known = {r["figure"]: r for r in map(json.loads, options.results.read_text(encoding="utf-8").splitlines())}
    known.update(fresh)
    options.results.write_text("".join(json.dumps(r) + "\n" for r in known.values()), encoding="utf-8")
    table = ["| figure | ratio | range | ours | other |", "|---|---|---|---|---|"]
    for r in known.values():
        low, high = r["ratio_min"], r["ratio_max"]
        table.append(
            f"| {r['figure']} | {r['ratio']:.2f} | {low:.2f} - {high:.2f} | {r['ours']:.3f} | {r['other']:.3f} |"
        )
    table += ["", *sorted({r["machine"] for r in known.values()})]
    print("\n".join(["", *table]))
    if options.write:
        marked = re.compile(r"(<!-- speed -->\n).*?(<!-- /speed -->)", re.DOTALL)
        text = options.write.read_text(encoding="utf-8")
        options.write.write_text(marked.sub(lambda m: m[1] + "\n".join(table) + "\n" + m[2], text), encoding="utf-8")


if __name__ == "__main__":
    main()
