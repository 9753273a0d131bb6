"""How near the lens comes to the gradient on a real model, and what a step of it takes.

    python benchmarks/lens.py                              # sst2 and trec, some minutes on one core
    python benchmarks/lens.py --tasks trec --write docs/lens.md

SmolLM2-135M-Instruct (`--model smollm2`) trains by `--estimator lens` with its defaults. At the start and after some
steps, the gradient of 64 examples by the lens is compared with that by backpropagation: cosines of the adapted modules,
means over thirds of the blocks and over all, and the cosine of all of them together. Beside it that of the gradient at
the top, carried down as it is. Then a step of 16 examples is timed in turn with a pass that scores them.
"""

import argparse
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[1] / "runs"))
from page import put
from smollm2 import processor

from zotune import Callback, mezo_finetune
from zotune.adapter.start import Start
from zotune.engine.torch.lens import Lens
from zotune.run.metrics import StepEvent
from zotune.zo.objectives import cross_entropy
from zotune.zo.protocol import AT_THETA, Theta

DATA = Path(__file__).parents[1] / "../shared/data"
LOOKS = (0, 10, 25, 50, 100)
HEADING = (
    "| task | lens | steps | bottom third | middle third | top third | mean of modules | all together |\n"
    + "|---" * 8
    + "|"
)


class Looks(Callback):
    """Rows of the table, of one run."""

    def __init__(self, task: str) -> None:
        self.task = task
        self.rows: list[str] = []
        self.ratios: list[float] = []

    def on_train_begin(self, trainer: Any) -> None:
        self.trainer = trainer
        layers = trainer.engine.layers
        start, modules = layers.spec.start, trainer.engine.layers.modules
        width = layers.lens.basis.shape[1]
        layers.lens = Lens(torch.eye(width), {name: torch.eye(width) for name in modules}, frozenset(modules))
        self.look("none", 0)
        layers.start_from(Start.of(start.tensors))
        self.look("measured", 0)

    def on_step_end(self, event: StepEvent) -> None:
        if event.step in LOOKS:
            self.look("measured", event.step)
        if event.step == LOOKS[-1]:
            batch, theta, engine = self.trainer.train_examples[:16], self.trainer.theta, self.trainer.engine
            for _ in range(12):
                began = time.perf_counter()
                cross_entropy.gradient(engine.lens_gradient, theta, batch)
                between = time.perf_counter()
                cross_entropy(engine, theta, [AT_THETA], batch)
                self.ratios.append((between - began) / (time.perf_counter() - between))

    def look(self, name: str, step: int) -> None:
        trainer = self.trainer
        batch, engine, theta = trainer.train_examples[-64:], trainer.engine, trainer.theta
        _, found = cross_entropy.gradient(engine.lens_gradient, theta, batch)
        _, exact = cross_entropy.gradient(engine.gradient, theta, batch)
        self.rows.append(
            f"| {self.task} | {name} | {step} | {' | '.join(f'{value:.2f}' for value in cosines(found, exact))} |"
        )


def cosines(found: Theta, exact: Theta) -> list[float]:
    """Means of the bottom, middle and top third of the blocks, of all modules, and that of all together."""
    blocks = {name: int(re.findall(r"\.(\d+)\.", name)[0]) for name in exact}
    count = max(blocks.values()) + 1
    by_module = {name: cosine(found[name].ravel(), exact[name].ravel()) for name in exact}
    thirds = [
        statistics.mean(value for name, value in by_module.items() if blocks[name] * 3 // count == third)
        for third in range(3)
    ]
    together = cosine(*(np.concatenate([of[name].ravel() for name in exact]) for of in (found, exact)))
    return [*thirds, statistics.mean(by_module.values()), together]


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / max(float(np.linalg.norm(first) * np.linalg.norm(second)), 1e-30))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["sst2", "trec"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, help="a page to put the table into")
    options = parser.parse_args()
    rows, paces = [], []
    for task in options.tasks:
        looks = Looks(task)
        with tempfile.TemporaryDirectory() as folder:
            mezo_finetune(
                "smollm2", task=task, train_data=str(DATA / task / "train.jsonl.gz"), max_train_samples=1000,
                max_eval_samples=16, eval_steps=LOOKS[-1], num_steps=LOOKS[-1], estimator="lens",
                num_threads=options.threads, output_dir=f"{folder}/run", callbacks=[looks],
            )  # fmt: skip
        rows += looks.rows
        low, middle, high = np.percentile(looks.ratios, (25, 50, 75))
        paces.append(f"{task} {middle:.2f} ({low:.2f} - {high:.2f})")
    text = "\n".join([HEADING, *rows])
    text += (
        f"\n\nA step over a pass that scores the same batch, seconds, prompts kept: {', '.join(paces)}. {processor()}."
    )
    print(text)
    if options.write:
        put(options.write, "lens", text)


if __name__ == "__main__":
    main()
