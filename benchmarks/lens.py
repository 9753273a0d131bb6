"""How near the lens comes to the gradient on a real model, and what a step of it takes.

    python benchmarks/lens.py                              # sst2 and trec, half an hour on one core
    python benchmarks/lens.py --write docs/lens.md --picture docs/images/lens.png

SmolLM2-135M-Instruct (`--model smollm2`) trains B by `--estimator lens`, with A frozen, in both scopes. At the start
and after some steps, the gradient of 32 examples by the lens is compared with that by backpropagation: cosines of the
adapted modules, means over thirds of the blocks and over all, and the cosine of all of them together. Beside it stand,
in scope activated, the gradient at the top of the model as it is ("as at the top"), and ways back with nothing through
attention ("without attention") and with mean Jacobians of attention, measured by perturbations ("measured Jacobians").
Then a step of 16 examples is timed in turn with backpropagation and with a pass that scores them.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.append(str(Path(__file__).parents[1] / "runs"))
from page import put
from smollm2 import processor

from zotune import Callback, mezo_finetune
from zotune.engine.torch.lens_measuring import measure_lens
from zotune.engine.torch.visits import Visit
from zotune.run.metrics import StepEvent
from zotune.tools.lens_cosines import by_block as cosines_by_block
from zotune.tools.lens_cosines import cosine
from zotune.zo.objectives import cross_entropy
from zotune.zo.protocol import AT_THETA

DATA = Path(__file__).parents[1] / "../shared/data"
LOOKS = (0, 25, 50)
SCOPES = ("activated", "everywhere")
DRAWN = (
    ("activated", "as at the top", 0), ("activated", "without attention", 0), ("activated", "measured Jacobians", 50),
    ("activated", "lens", 50), ("everywhere", "lens", 0), ("everywhere", "lens", 50),
)  # fmt: skip
HEADING = (
    "| task | scope | way back | steps | bottom third | middle third | top third | mean of modules | all together |\n"
    + "|---" * 9
    + "|"
)


class Looks(Callback):
    """Rows of the table, of one run."""

    def __init__(self, task: str, scope: str) -> None:
        self.task, self.scope = task, scope
        self.rows: list[str] = []
        self.by_block: dict[tuple[str, str, int], list[float]] = {}  # by scope, way back and steps
        self.ratios: list[tuple[float, float]] = []  # of the lens and of backpropagation, over a pass that scores

    def on_train_begin(self, trainer: Any) -> None:
        self.trainer, layers = trainer, trainer.engine.layers
        if self.scope == "activated":
            lens = layers.lens
            self.measured = measure_lens(trainer.engine, trainer.train_examples, seed=0, everywhere=True)
            nothing = (torch.zeros(2 * (trainer.engine.model.config.hidden_size,)),)
            layers.lens = replace(self.measured, through=dict.fromkeys(self.measured.through, nothing))
            self.look("without attention", 0)
            exact = Visit.back
            Visit.back = as_it_is
            self.look("as at the top", 0)
            Visit.back = exact
            layers.lens = lens
        self.look_both(0)

    def look_both(self, step: int) -> None:
        layers = self.trainer.engine.layers
        if self.scope == "activated":
            lens, layers.lens = layers.lens, self.measured
            self.look("measured Jacobians", step)
            layers.lens = lens
        self.look("lens", step)

    def on_step_end(self, event: StepEvent) -> None:
        if event.step in LOOKS:
            self.look_both(event.step)
        if event.step == LOOKS[-1]:
            batch, theta, engine = self.trainer.train_examples[:16], self.trainer.theta, self.trainer.engine
            for _ in range(7):
                at = [time.perf_counter()]
                for way in (engine.lens_gradient, engine.gradient):
                    cross_entropy.gradient(way, theta, batch)
                    at.append(time.perf_counter())
                cross_entropy(engine, theta, [AT_THETA], batch)
                lens, backpropagation, scoring = np.diff([*at, time.perf_counter()])
                self.ratios.append((lens / scoring, backpropagation / scoring))

    def look(self, way: str, step: int) -> None:
        trainer = self.trainer
        batch, engine, theta = trainer.train_examples[-32:], trainer.engine, trainer.theta
        _, found = cross_entropy.gradient(engine.lens_gradient, theta, batch)
        _, exact = cross_entropy.gradient(engine.gradient, theta, batch)
        by_block = self.by_block[self.scope, way, step] = list(cosines_by_block(found, exact).values())
        together = cosine(*(np.concatenate([of[name].ravel() for name in exact]) for of in (found, exact)))
        values = [*(float(third.mean()) for third in np.array_split(by_block, 3)), statistics.mean(by_block), together]
        self.rows.append(
            f"| {self.task} | {self.scope} | {way} | {step} | {' | '.join(f'{value:.2f}' for value in values)} |"
        )


def as_it_is(visit: Visit, block: Any, gradient: torch.Tensor, modules: Any, measured: bool) -> Any:
    """In place of the way back through a block: the gradient at what comes out, everywhere."""
    return gradient, gradient, dict.fromkeys(modules, gradient)


def draw(picture: Path, seen: list[Looks]) -> None:
    tasks = list(dict.fromkeys(looks.task for looks in seen))
    figure, axes = plt.subplots(1, len(tasks), figsize=(4.5 * len(tasks), 3.5), sharey=True, squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        by_block = {key: values for looks in seen if looks.task == task for key, values in looks.by_block.items()}
        for scope, way, step in DRAWN:
            after = f", after {step} steps" if step else ""
            axis.plot(by_block[scope, way, step], label=f"{scope}: {way}{after}")
        axis.set(title=task, xlabel="block, from the bottom to the top")
    axes[0][0].set_ylabel("cosine with backpropagation")
    axes[0][-1].legend(fontsize="x-small")
    figure.tight_layout()
    figure.savefig(picture, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["sst2", "trec"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, help="a page to put the table into")
    parser.add_argument("--picture", type=Path, help="a file to draw the cosines by block into")
    options = parser.parse_args()
    seen, paces = [], []
    for task, scope in product(options.tasks, SCOPES):
        looks = Looks(task, scope)
        with tempfile.TemporaryDirectory() as folder:
            mezo_finetune(
                "smollm2", task=task, train_data=str(DATA / task / "train.jsonl.gz"), max_train_samples=500,
                max_eval_samples=16, eval_steps=LOOKS[-1], num_steps=LOOKS[-1], estimator="lens", tuning="lora_fa",
                scope=scope, num_threads=options.threads, output_dir=f"{folder}/run", callbacks=[looks],
            )  # fmt: skip
        seen.append(looks)
        for name, ratios in zip(("lens", "backpropagation"), np.transpose(looks.ratios), strict=True):
            low, middle, high = np.percentile(ratios, (25, 50, 75))
            paces.append(f"{task} {scope} {name} {middle:.2f} ({low:.2f} - {high:.2f})")
    text = "\n".join([HEADING, *(row for looks in seen for row in looks.rows)])
    text += f"\n\nA step over a pass that scores the same batch, prompts kept: {'; '.join(paces)}. {processor()}."
    print(text)
    if options.write:
        put(options.write, "lens", text)
    if options.picture:
        draw(options.picture, seen)


if __name__ == "__main__":
    main()
