"""Why prompt KV must not be reused between probes of an ordinary LoRA, measured on the user's own model and data.

Earlier work proposed to compute the prompt's keys and values in the pass at theta + eps z and to reuse them at
theta - eps z. This compares the slope so obtained with the exact one over eps, and the keys and values of the two
passes layer by layer; and it recommends an eps from the exact slopes alone. Training never uses the approximation. In
a masked model no keys and values of a prompt could be shared: of it there are the exact slopes.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from transformers import DynamicCache

from zotune.adapter.forms import initial_theta
from zotune.engine.torch.model_kind import sees_all
from zotune.engine.torch.plain import PlainEngine
from zotune.engine.torch.shared_kv import cache_name
from zotune.engine.torch.suffix import make_suffix
from zotune.zo.draws import derive_seed
from zotune.zo.objectives import ScoredObjective
from zotune.zo.protocol import AT_THETA, Example, Probe, Scores, Theta

EPSILONS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


@dataclass(frozen=True)
class Row:
    """One eps: medians over directions. `change` is how far the exact slope moves to the neighbouring eps, relative."""

    epsilon: float
    slope_size: float
    curvature: float
    change: float


@dataclass(frozen=True)
class Reuse:
    """What reuse of the prompt's KV does at one eps."""

    error: float  # |reused - exact| / |exact|, the median over directions
    sign_agreement: float  # share of directions in which both have the same sign
    key_difference: float  # |K+ - K-| / |K+|, mean over layers
    value_difference: float


@dataclass(frozen=True)
class Analysis:
    """`reuse` is by eps, as `rows`; `layers` holds, at the recommended eps, cosine and relative difference of K and V
    between the two passes. Both are empty of a masked model."""

    rows: list[Row]
    reuse: list[Reuse]
    layers: list[dict[str, float]]
    recommended_epsilon: float
    rounding_error: float  # of the loss: what the slope at the smallest eps is off by, times 2 eps


def analyze(
    engine: PlainEngine, objective: ScoredObjective, batch: Sequence[Example], seed: int, directions: int
) -> Analysis:
    """Slopes over EPSILONS along `directions` directions from an adapter's initial point, in scope everywhere.

    Raises:
        FloatingPointError: a loss is no finite number.
    """
    theta = initial_theta(engine.tensor_shapes, seed, engine.spec)
    # B is zero at the start, where K and V of the two passes are nearly equal for want of a product; step off it.
    theta = dict(Probe(derive_seed(seed, "analyze"), 0.02).of(theta))
    shares = not sees_all(engine.model)
    centre = _losses(engine, objective, theta, batch, _prompt_caches(engine, theta, batch) if shares else None)
    seeds = [derive_seed(seed, "direction", 0, k) for k in range(directions)]
    exact, reused = (np.zeros((len(EPSILONS), directions)) for _ in range(2))
    curvature = np.zeros_like(exact)
    differences = np.zeros((len(EPSILONS), directions, engine.model.config.get_text_config().num_hidden_layers, 4))
    for e, epsilon in enumerate(EPSILONS):
        for k, direction in enumerate(seeds):
            above, below = (dict(Probe(direction, distance).of(theta)) for distance in (epsilon, -epsilon))
            above_kv, below_kv = (_prompt_caches(engine, point, batch) if shares else None for point in (above, below))
            loss_above = _losses(engine, objective, above, batch, above_kv)
            loss_below = _losses(engine, objective, below, batch, below_kv)
            exact[e, k] = (loss_above - loss_below) / (2 * epsilon)
            curvature[e, k] = (loss_above + loss_below - 2 * centre) / epsilon**2
            if above_kv is not None and below_kv is not None:
                reused[e, k] = (loss_above - _losses(engine, objective, below, batch, above_kv)) / (2 * epsilon)
                differences[e, k] = _differences(above_kv, below_kv)
    moves = np.abs(np.diff(exact, axis=0)) / np.maximum(np.abs(exact[1:]), 1e-30)  # to the next larger eps
    change = np.median(np.maximum(np.vstack([moves, moves[-1:]]), np.vstack([moves[:1], moves])), axis=1)
    best = int(np.argmin(change))
    rows = [
        Row(
            epsilon=epsilon,
            slope_size=float(np.median(np.abs(exact[e]))),
            curvature=float(np.median(curvature[e])),
            change=float(change[e]),
        )
        for e, epsilon in enumerate(EPSILONS)
    ]
    reuse, layers = _reuse(exact, reused, differences, best) if shares else ([], [])
    rounding = float(np.median(np.abs(exact[0] - exact[best])) * 2 * EPSILONS[0])
    return Analysis(rows, reuse, layers, EPSILONS[best], rounding)


def _reuse(
    exact: np.ndarray, reused: np.ndarray, differences: np.ndarray, best: int
) -> tuple[list[Reuse], list[dict[str, float]]]:
    """Of slopes [eps, direction] and differences [eps, direction, layer, 4], of which the eps `best` is recommended."""
    errors = np.median(np.abs(reused - exact) / np.maximum(np.abs(exact), 1e-30), axis=1)
    agreement = np.mean(np.sign(reused) == np.sign(exact), axis=1)
    means = differences.mean(axis=(1, 2))
    reuse = [
        Reuse(float(error), float(share), float(mean[1]), float(mean[3]))
        for error, share, mean in zip(errors, agreement, means, strict=True)
    ]
    names = ("key_cosine", "key_difference", "value_cosine", "value_difference")
    return reuse, [dict(zip(names, map(float, layer), strict=True)) for layer in differences[best].mean(axis=0)]


def save(analysis: Analysis, folder: Path) -> list[Path]:
    """Write analysis.json and a plot as PNG and SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "analysis.json").write_text(json.dumps(asdict(analysis), indent=2) + "\n", encoding="utf-8")
    number = 2 if analysis.reuse else 1
    figure, axes = plt.subplots(1, number, figsize=(5.5 * number, 4), constrained_layout=True, squeeze=False)
    slopes, epsilons = axes[0, 0], [row.epsilon for row in analysis.rows]
    if analysis.reuse:
        errors = [reuse.error for reuse in analysis.reuse]
        slopes.loglog(epsilons, errors, "o-", label="error of the slope with reused KV")
        _plot_layers(axes[0, 1], analysis)
    slopes.loglog(epsilons, [row.change for row in analysis.rows], "s--", label="change of the exact slope between eps")
    slopes.axvline(analysis.recommended_epsilon, color="gray", linewidth=1, label="recommended eps")
    slopes.set(title="Slope along a direction", xlabel="eps", ylabel="relative")
    for each in axes.flat:
        each.grid(alpha=0.25)
        each.legend(fontsize="small")
    files = [folder / "analysis.png", folder / "analysis.svg"]
    for path in files:
        figure.savefig(path, dpi=130)
    plt.close(figure)
    return [folder / "analysis.json", *files]


def _plot_layers(layers: Any, analysis: Analysis) -> None:
    for name, style in (("key_difference", "o-"), ("value_difference", "s-")):
        layers.plot(
            [layer[name] for layer in analysis.layers],
            style,
            label=f"|{name[0].upper()}+ - {name[0].upper()}-| / |{name[0].upper()}+|",
        )
    layers.set(
        title=f"Prompt KV of the two passes, eps {analysis.recommended_epsilon:g}", xlabel="layer", ylabel="relative"
    )


Caches = list[list[tuple[torch.Tensor, torch.Tensor]]]  # [example][layer] -> keys, values of the prompt


@torch.inference_mode()
def _prompt_caches(engine: PlainEngine, point: Theta, batch: Sequence[Example]) -> Caches:
    """Prompt KV under a point, an ordinary LoRA's: it acts on every token."""
    engine.layers.place(point, [AT_THETA])
    engine.layers.num_groups, engine.layers.token_mask = 1, None
    caches = []
    for example in batch:
        ids = torch.tensor([example.prompt], device=engine.model.device)
        cache: Any = DynamicCache()
        engine.model(input_ids=ids, use_cache=True, logits_to_keep=1, **{cache_name(engine.model): cache})
        caches.append([(layer.keys, layer.values) for layer in cache.layers])
    return caches


@torch.inference_mode()
def _losses(
    engine: PlainEngine, objective: ScoredObjective, point: Theta, batch: Sequence[Example], caches: Caches | None
) -> float:
    """Mean loss with invocation and candidates computed under `point`, on top of the given prompt KV; None: all under
    `point`."""
    if caches is None:
        return _finite_loss(engine.score(point, [AT_THETA], batch), objective, batch)
    engine.layers.place(point, [AT_THETA])
    engine.layers.num_groups, engine.layers.token_mask = 1, None
    num_candidates = max(len(example.candidates) for example in batch)
    log_probs = np.full((1, len(batch), num_candidates), -np.inf, dtype=np.float32)
    num_tokens = np.zeros((len(batch), num_candidates), dtype=np.int64)
    for i, (example, kv) in enumerate(zip(batch, caches, strict=True)):
        for c, candidate in enumerate(example.candidates):
            suffix = make_suffix(example.invocation or example.prompt[-1:], (candidate,))
            cut = len(example.prompt) - (0 if example.invocation else 1)
            cache: Any = DynamicCache()
            for layer, (keys, values) in enumerate(kv):
                cache.update(keys[:, :, :cut], values[:, :, :cut], layer)
            ids = torch.tensor([suffix.tokens], device=engine.model.device)
            kept = {cache_name(engine.model): cache}
            logits = engine.model(input_ids=ids, use_cache=True, **kept).logits[0, -len(candidate) :]
            picked = logits.float().log_softmax(-1)[range(len(candidate)), list(candidate)]
            log_probs[0, i, c], num_tokens[i, c] = float(picked.sum()), len(candidate)
    return _finite_loss(Scores(log_probs, num_tokens), objective, batch)


def _finite_loss(scores: Scores, objective: ScoredObjective, batch: Sequence[Example]) -> float:
    loss = float(objective.losses(scores, batch).mean())
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss}")
    return loss


def _differences(above: Caches, below: Caches) -> np.ndarray:
    """[layer, (cosine K, difference K, cosine V, difference V)], mean over examples."""

    def measure(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
        a, b = a.double().flatten(), b.double().flatten()
        return float(torch.dot(a, b) / (a.norm() * b.norm())), float((a - b).norm() / a.norm())

    return np.mean(
        [
            [(*measure(k1, k2), *measure(v1, v2)) for (k1, v1), (k2, v2) in zip(first, second, strict=True)]
            for first, second in zip(above, below, strict=True)
        ],
        axis=0,
    )
