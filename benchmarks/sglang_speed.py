"""Speed of the SGLang engine: a step of MeZO against plain scoring of the same rows through the same engine.

A step draws directions, writes the probes into the slots, scores, and updates theta. Plain scoring asks the same
engine for the same rows under adapters that stay as they are. Both are measured in turn (A B A B ...); the ratio is
that of the medians, with the smallest and largest of neighbouring runs beside it. Reuse is by SGLang's own counts:
tokens served from its cache over those and the ones computed. Prints a JSON line and a table.

    python benchmarks/sglang_speed.py --model ../shared/models/opt-imdb-4m --data ../shared/data/imdb/train.jsonl.gz
"""

import argparse
import gzip
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig, AutoTokenizer

from zotune.adapter.forms import initial_theta
from zotune.adapter.spec import LoraSpec
from zotune.data.tasks import TASKS
from zotune.data.templates import Encoder
from zotune.engine.sglang.engine import SglangEngine
from zotune.engine.sglang.names import installed_version
from zotune.zo.estimators import Spsa
from zotune.zo.objectives import cross_entropy
from zotune.zo.optimizers import Sgd
from zotune.zo.updates import Slopes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, type=Path, help=".jsonl.gz with field text")
    parser.add_argument("--scope", default="activated", choices=["activated", "everywhere"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--directions", type=int, default=1)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--target-modules", nargs="+", default=["q_proj", "k_proj", "v_proj", "out_proj"])
    parser.add_argument("--tp-size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, help="append the JSON line to this file")
    flags = parser.parse_args()

    batch, invocation = examples(flags)
    spec = LoraSpec(8, 16.0, tuple(flags.target_modules), invocation if flags.scope == "activated" else None)
    engine = SglangEngine(
        flags.model, AutoConfig.from_pretrained(flags.model), spec, dtype=flags.dtype, device=flags.device,
        num_probes=2 * flags.directions, options={"tp_size": flags.tp_size},
    )  # fmt: skip
    try:
        result = measure(engine, batch, flags)
    finally:
        engine.close()
    line = json.dumps(result)
    print(line)
    if flags.output:
        with flags.output.open("a") as file:
            file.write(line + "\n")
    for name, value in result.items():
        print(f"{name:32} {value}")


def examples(flags: argparse.Namespace) -> tuple[list[Any], tuple[int, ...]]:
    with gzip.open(flags.data, "rt", encoding="utf-8") as file:
        records = [json.loads(next(file)) for _ in range(flags.batch_size)]
    task = TASKS["imdb"]
    encoder = Encoder(AutoTokenizer.from_pretrained(flags.model), task, flags.max_length, activated=True)
    from zotune.data.records import Record
    from zotune.data.texts import to_texts

    rows = [Record(record, f"record {number}") for number, record in enumerate(records)]
    return list(encoder.encode(to_texts(rows, task, {})).examples), encoder.invocation


def measure(engine: SglangEngine, batch: list[Any], flags: argparse.Namespace) -> dict[str, Any]:
    theta: dict[str, np.ndarray] = dict(initial_theta(engine.tensor_shapes, 0))
    estimator, optimizer = Spsa(epsilon=1e-2), Sgd()
    state = optimizer.init(theta)
    seeds = iter(range(10**9))
    probes = estimator.ask([next(seeds) for _ in range(flags.directions)])

    def step() -> None:
        nonlocal theta, state
        asked = estimator.ask([next(seeds) for _ in range(flags.directions)])
        losses = cross_entropy.losses(engine.score(theta, asked, batch), batch)
        theta, state = optimizer.update(theta, state, Slopes(tuple(estimator.tell(asked, losses))), 1e-5)

    fixed = dict(theta)

    def settle() -> None:  # the fixed adapters into the slots, outside what is timed
        engine.score(fixed, probes, batch[:1])

    def plain() -> None:
        engine.score(fixed, probes, batch)

    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    before = vars(engine.counts).copy()
    step()
    served = engine.counts.tokens_cached - before["tokens_cached"]
    computed = engine.counts.tokens_computed - before["tokens_computed"]
    pairs = []
    for _ in range(flags.repeats):
        pairs.append((timed(step), (settle(), timed(plain))[1]))
    steps, plains = ([pair[side] for pair in pairs] for side in (0, 1))
    ratios = [alone / whole for whole, alone in pairs]
    tokens = served + computed
    return {
        "benchmark": "sglang_speed", "sglang": installed_version(), "machine": f"{platform.machine()}, {flags.device}",
        "model": Path(flags.model).name, "dtype": flags.dtype, "scope": flags.scope, "tp_size": flags.tp_size,
        "batch_size": len(batch), "directions": flags.directions,
        "prompt_tokens": [min(len(e.prompt) for e in batch), max(len(e.prompt) for e in batch)],
        "first_step_s": round(first, 4), "step_s": round(statistics.median(steps), 4),
        "plain_scoring_s": round(statistics.median(plains), 4),
        "step_over_plain_throughput": round(statistics.median(plains) / statistics.median(steps), 3),
        "of_neighbours": [round(min(ratios), 3), round(max(ratios), 3)],
        "tokens_computed_a_step": computed, "tokens_served_from_cache_a_step": served,
        "reuse_by_sglang": round(served / tokens, 4), "tokens_a_second": round(tokens / statistics.median(steps)),
    }  # fmt: skip


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
