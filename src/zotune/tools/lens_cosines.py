"""How near the gradient by the lens comes to that by backpropagation, on the user's own model and data, by block."""

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from zotune.adapter.forms import initial_theta
from zotune.zo.draws import derive_seed
from zotune.zo.objectives import Objective
from zotune.zo.protocol import Engine, Example, Probe, Theta

DISTANCE = 0.02  # from the adapter's start, where B is zero and what blocks do to each other does not show


def lens_cosines(engine: Engine, objective: Objective, batch: Sequence[Example], seed: int) -> dict[int, float]:
    """By block, the mean cosine of its modules, a little off the adapter's start.

    Args:
        engine: one with a lens and gradients.
    """
    theta = initial_theta(engine.tensor_shapes, seed, engine.spec)
    theta = dict(Probe(derive_seed(seed, "analyze"), DISTANCE).of(theta))
    _, found = objective.gradient(engine.lens_gradient, theta, batch)
    _, exact = objective.gradient(engine.gradient, theta, batch)
    return by_block(found, exact)


def by_block(found: Theta, exact: Theta) -> dict[int, float]:
    """Means of the cosines of each block's modules, from the first block to the last."""
    cosines: dict[int, list[float]] = {}
    for name in exact:
        block = int(re.findall(r"\.(\d+)\.", name)[0])
        cosines.setdefault(block, []).append(cosine(found[name], exact[name]))
    return {block: statistics.mean(cosines[block]) for block in sorted(cosines)}


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float((first * second).sum() / max(float(np.linalg.norm(first) * np.linalg.norm(second)), 1e-30))


def save(cosines: Mapping[int, float], folder: Path) -> list[Path]:
    """Write lens.json and a plot as PNG and SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"lens.{kind}" for kind in ("json", "png", "svg")]
    files[0].write_text(json.dumps(cosines, indent=2) + "\n", encoding="utf-8")
    figure, axes = plt.subplots(figsize=(6, 4), constrained_layout=True)
    axes.plot(list(cosines), list(cosines.values()), "o-")
    axes.set(xlabel="block, from the bottom to the top", ylabel="cosine with backpropagation", ylim=(None, 1.02))
    axes.grid(alpha=0.25)
    for path in files[1:]:
        figure.savefig(path, dpi=130)
    plt.close(figure)
    return files
