"""Whether the slopes of a run are good enough in half precision, where nobody asked for that.

A probe moves the loss by little, and a rounding error does too. What counts is how large the error of a slope is beside
what it differs by from batch to batch anyway; it is measured on a few examples, beside the same model in float32.
"""

import logging

import numpy as np

from zotune.adapter.forms import initial_theta
from zotune.config.run import Run
from zotune.zo.protocol import AT_THETA, Engine, Example, Probe

logger = logging.getLogger("zotune")

NUM_EXAMPLES = 8
NUM_DIRECTIONS = 4
MOST_ERROR = 0.5  # of a slope, beside its spread over batches: a quarter more variance, for steps half as long again


def slopes_hold(run: Run, engine: Engine, examples: list[Example]) -> bool:
    """Whether the engine's precision serves the run; the log has the figure."""
    try:
        error = slope_error(run, engine, examples)
    except Exception:  # whatever a model's own code raises over a dtype that it does not expect
        error = float("inf")
    if error is None:
        return True
    settings, holds = run.config, error <= MOST_ERROR
    logger.info(
        "dtype: %s: slopes at epsilon %g are off by %.2g of what they differ by from batch to batch",
        settings.dtype if holds else f"float32 instead of {settings.dtype}", settings.epsilon, error,
    )  # fmt: skip
    return holds


def slope_error(run: Run, engine: Engine, examples: list[Example]) -> float | None:
    """The error of a slope at the run's epsilon, over its spread from batch to batch, at the run's start.

    None: the run has no slopes of differences, or the engine is not of half precision.
    """
    settings = run.config
    inside = engine.in_float32()
    if (
        inside is None or run.estimator.needs or run.objective.needs != ("scores",)
    ):  # exact derivatives have an error of another kind
        return None
    two_sided = run.estimator.num_probes(NUM_DIRECTIONS) == 2 * NUM_DIRECTIONS
    theta = initial_theta(engine.tensor_shapes, settings.seed, engine.spec)
    probes = [AT_THETA]
    for seed in range(NUM_DIRECTIONS):
        probes += [Probe(seed, sign * settings.epsilon, run.noise) for sign in ((1, -1) if two_sided else (1,))]

    def differences() -> np.ndarray:
        """Of losses, [direction, example]."""
        losses = run.objective.by_example()(engine, theta, probes, examples[:NUM_EXAMPLES]).values
        return losses[1::2] - losses[2::2] if two_sided else losses[1:] - losses[0]

    rounded = differences()
    with inside:
        exact = differences()
    # Errors and slopes of a batch are both means over its examples, which divides both by the same number.
    return float(np.sqrt(np.mean((rounded - exact) ** 2)) / max(float(np.std(exact, axis=1).mean()), 1e-12))
