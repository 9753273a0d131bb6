"""Steps a second of one and two Ray workers of a thread each, beside the engine alone, in turn on the same batches.

    python benchmarks/ray_speed.py --shape opt-125m

OPT's shape with random weights, scope activated, 16 directions, prompts warm. A ratio is the median over neighbouring
turns. The table goes into docs/ray.md.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import ray
import torch
from opt_models import SHAPES, VOCABULARY, make_model
from ray_pages import publish

from zotune.adapter.forms import initial_theta
from zotune.adapter.spec import LoraSpec
from zotune.engine import ENGINES
from zotune.engine.kind import EngineRequest
from zotune.engine.ray.cut import cut
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.zo.estimators import ESTIMATORS
from zotune.zo.moves import Move, moved
from zotune.zo.noise import GAUSSIAN
from zotune.zo.noise_ahead import AHEAD
from zotune.zo.objectives import cross_entropy
from zotune.zo.optimizers import OPTIMIZERS
from zotune.zo.protocol import Example, Probe, Scores, Theta

INVOCATION = (50, 51)
SPEC = LoraSpec(8, 16.0, ("q_proj", "v_proj"), INVOCATION)
PIECES, DIRECTIONS = 8, 16


class InPieces(TorchEngine):
    """The engine alone, computing the pieces that a Ray engine hands out."""

    whole = True

    def score(self, theta: Theta, probes: Sequence[Probe], batch: Sequence[Example], normalized: bool = True) -> Scores:
        if self.whole:
            return super().score(theta, probes, batch, normalized)
        parts = cut(len(probes), len(batch), PIECES, by_examples=True)
        found = [
            super(InPieces, self).score(theta, probes, batch[part.examples.start : part.examples.stop], normalized)
            for part in parts
        ]
        return Scores(
            np.concatenate([each.log_probs for each in found], axis=1),
            np.concatenate([each.num_tokens for each in found]),
        )


class Steps:
    """Training steps of an engine, one at a time.

    As in a run, a step draws the directions of the next in a thread; those of its own were drawn before.
    """

    def __init__(self, engine: Any) -> None:
        self.engine, self.number = engine, 0
        self.theta: Theta = initial_theta(engine.tensor_shapes, 0, engine.spec)
        self.optimizer = OPTIMIZERS["adam"]()
        self.state = self.optimizer.init(self.theta)

    def _ahead(self, number: int) -> list[int]:
        seeds = [1000 * number + direction for direction in range(DIRECTIONS)]
        AHEAD.start(GAUSSIAN, seeds, self.theta)
        return seeds

    def __call__(self, batch: Sequence[Example]) -> float:
        seeds = self._ahead(self.number)
        AHEAD.drawn(GAUSSIAN, seeds[-1])
        began = time.perf_counter()
        self._ahead(self.number + 1)
        estimate = ESTIMATORS["one_sided"](1e-2).estimate(cross_entropy, self.engine, self.theta, batch, seeds)
        self.theta, self.state = moved(self.engine, self.theta, self.state, Move(self.optimizer, estimate.update, 1e-4))
        self.number += 1
        took = time.perf_counter() - began
        AHEAD.drawn(GAUSSIAN, 1000 * self.number + DIRECTIONS - 1)  # waits for the thread
        return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="opt-125m")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=600, help="no turn begins after so many")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    torch.set_num_threads(1)
    draw = np.random.default_rng(0)
    batch = [
        Example(tuple(map(int, draw.integers(60, VOCABULARY, 48))), INVOCATION, ((52,), (53,)), n % 2)
        for n in range(options.batch)
    ]
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(options.shape)
        model.save_pretrained(folder)
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=10**8,
            logging_level="ERROR",
        )
        opened = []
        for count in (1, 2, 1):
            tables = {"ray": {"num_workers": count, "pieces": PIECES}}
            request = EngineRequest(folder, model.config, SPEC, "float32", "cpu", kv_cache_gb=1.0, tables=tables)
            opened.append(ENGINES["ray"].open(request))
        alone = InPieces(model, SPEC, PrefixCache(1e9))
        steps = {"alone": Steps(alone), "1": Steps(opened[0]), "2": Steps(opened[1])}
        both = [steps["1"], Steps(opened[2])]

        def in_pieces(batch: Sequence[Example]) -> float:
            alone.whole = False
            took = steps["alone"](batch)
            alone.whole = True
            return took

        def at_once(batch: Sequence[Example]) -> float:
            """Two runs of one worker each, side by side: what the machine has of two processes."""
            began = time.perf_counter()
            with ThreadPoolExecutor(2) as threads:
                list(threads.map(lambda step: step(batch), both))
            return (time.perf_counter() - began) / 2

        turns: dict[str, Callable[[Sequence[Example]], float]] = {
            "whole": steps["alone"], "pieces": in_pieces, "1": steps["1"], "2": steps["2"], "both": at_once,
        }  # fmt: skip
        for name in ("whole", "1", "2", "2", "both"):
            turns[name](batch)
        times: dict[str, list[float]] = {name: [] for name in turns}
        for turn in range(options.turns):
            if turn and time.monotonic() > end:
                break
            for name, step in turns.items():
                times[name].append(step(batch))
            print({name: round(taken[-1], 2) for name, taken in times.items()}, flush=True)
        for engine in opened:
            engine.close()
        ray.shutdown()

    def ratio(above: str, below: str) -> str:
        pairs = sorted(a / b for a, b in zip(times[above], times[below], strict=True))
        return f"{statistics.median(pairs):.2f} ({pairs[len(pairs) // 4]:.2f} to {pairs[-1 - len(pairs) // 4]:.2f})"

    rows = [
        ["steps/s of 2 workers over 1 worker", ratio("1", "2")],
        ["steps/s of two runs of 1 worker at once, together, over 1 worker: what the machine has", ratio("1", "both")],
        ["time of 2 workers over that of two runs at once, for as many steps", ratio("2", "both")],
        ["time of 1 worker over the engine alone, in the same pieces", ratio("1", "pieces")],
        ["time of 1 worker over the engine alone, in one piece", ratio("1", "whole")],
        ["time of the engine alone in 8 pieces over one piece", ratio("pieces", "whole")],
        ["seconds a step of the engine alone, in one piece", f"{statistics.median(times['whole']):.2f}"],
    ]
    num_turns = len(times["whole"])
    note = (
        f"Shape {options.shape}, a batch of {options.batch}, {num_turns} turns, medians of pairs with their quartiles, "
        "one thread a worker."
    )
    publish("speed", ["what", "figure"], rows, note)


if __name__ == "__main__":
    main()
