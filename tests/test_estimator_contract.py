"""The contract of every estimator, one row each, on functions whose derivatives are known.

Losses are computed in float64 from the probes, so what is left of an error is the estimator's own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from zotune.zo.estimators import (
    ESTIMATORS,
    AdaptiveSpsa,
    EvolutionStrategy,
    Fzoo,
    Hizoo,
    Jvp,
    OneSided,
    ProbeEstimator,
    Slope,
    Spsa,
    Svrg,
    centred_ranks,
)
from zotune.zo.noise import GAUSSIAN, Noise
from zotune.zo.protocol import Probe
from zotune.zo.updates import Slopes

DIMENSION = 6
THETA = np.linspace(-0.8, 0.9, DIMENSION)
Function = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Row:
    """What an estimator states of itself.

    order: its error falls with eps to this power; None: it has none but rounding. free: its slopes do not depend on the
    scale of the loss; they are compared up to a positive factor. noise_gain: independent noise of size s in the losses
    makes an error of standard deviation noise_gain * s / eps. exact: False where slopes are but an ascent direction.
    """

    made: Callable[[float], ProbeEstimator]
    order: int | None
    noise_gain: float | None
    free: bool = False
    exact: bool = True


ROWS = {
    "spsa": Row(Spsa, 2, 0.5**0.5),
    "one_sided": Row(OneSided, 1, 2**0.5),
    "fzoo": Row(Fzoo, 1, None, free=True),
    "es": Row(EvolutionStrategy, 2, None, free=True),
    "es of ranks": Row(lambda epsilon: EvolutionStrategy(epsilon, shaping="rank"), 0, None, free=True, exact=False),
    "svrg": Row(Svrg, 2, 0.5**0.5),
    "hizoo": Row(Hizoo, 2, 0.5**0.5),
    "adaptive": Row(AdaptiveSpsa, 2, 0.5**0.5),
    "adaptive between measurements": Row(lambda epsilon: AdaptiveSpsa(epsilon, age=1), 2, 0.5**0.5),
    "jvp": Row(lambda epsilon: Jvp(), None, None),
}


def test_every_estimator_has_a_row():
    assert {name for name, made in ESTIMATORS.items() if issubclass(made, ProbeEstimator)} <= set(ROWS)


def point(probe: Probe, theta: np.ndarray) -> np.ndarray:
    base = theta if probe.base is None else probe.base["x"]
    return base + probe.distance * probe.noise.draw(probe.seed, "x", base).astype(np.float64)


def measured(function: Function, probe: Probe, theta: np.ndarray) -> float:
    """What a probe asks for; the derivative by five points, exact on polynomials of degree 4 such as Rosenbrock's."""
    if not probe.derivative:
        return function(point(probe, theta))
    weights = {-2: 1, -1: -8, 1: 8, 2: -1}
    return sum(w * function(point(replace(probe, distance=0.1 * n), theta)) for n, w in weights.items()) / (12 * 0.1)


def gradient(slopes, name, value):
    return Slopes(tuple(slopes)).gradient(name, value)


def slopes_of(
    estimator: ProbeEstimator, function: Function, seeds: Any, theta: np.ndarray = THETA, noise: Noise = GAUSSIAN
) -> list[Slope]:
    probes = estimator.ask(seeds, noise)
    return estimator.tell(probes, np.array([[measured(function, probe, theta)] for probe in probes]))


def values_of(row: Row, epsilon: float, function: Function, seeds: Any, noise: Noise = GAUSSIAN) -> np.ndarray:
    """Slope values; of length 1 where only their ratios mean something."""
    values = np.array([slope.value for slope in slopes_of(row.made(epsilon), function, seeds, noise=noise)])
    return values / np.linalg.norm(values) if row.free else values


def exact_values(row: Row, grad: np.ndarray, seeds: Any, noise: Noise = GAUSSIAN) -> np.ndarray:
    values = np.array([noise.draw(seed, "x", THETA).astype(np.float64) @ grad for seed in seeds])
    return values / np.linalg.norm(values) if row.free else values


COEFFICIENTS = np.array([1.0, -2.0, 0.5, 3.0, -0.3, 0.1])
_ROOT = np.random.default_rng(0).normal(size=(DIMENSION, DIMENSION))
HESSIAN = _ROOT @ _ROOT.T


def linear(x: np.ndarray) -> float:
    return float(COEFFICIENTS @ x)


def quadratic(x: np.ndarray) -> float:
    return float(0.5 * x @ HESSIAN @ x)


def rosenbrock(x: np.ndarray) -> float:
    return float(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))


def rosenbrock_gradient(x: np.ndarray) -> np.ndarray:
    inner = x[1:] - x[:-1] ** 2
    grad = np.zeros_like(x)
    grad[:-1] = -400 * inner * x[:-1] - 2 * (1 - x[:-1])
    grad[1:] += 200 * inner
    return grad


GRADIENTS: dict[Function, Callable[[np.ndarray], np.ndarray]] = {
    linear: lambda x: COEFFICIENTS,
    quadratic: lambda x: HESSIAN @ x,
    rosenbrock: rosenbrock_gradient,
}
NOISES = {
    "gaussian": GAUSSIAN,
    "rademacher": Noise("rademacher"),
    "sphere": Noise("sphere"),
    "low_rank": Noise("low_rank"),
}
EXACT = {name: row for name, row in ROWS.items() if row.exact}
SEEDS = range(40, 48)


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("epsilon", [1e-3, 1.0])
@pytest.mark.parametrize("row", EXACT.values(), ids=EXACT)
def test_on_a_linear_function_slopes_are_exact_at_any_epsilon(row, epsilon, noise):
    # Rounding of losses of order 10 over eps.
    expected = exact_values(row, COEFFICIENTS, SEEDS, noise)
    np.testing.assert_allclose(values_of(row, epsilon, linear, SEEDS, noise), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("function", [quadratic, rosenbrock])
@pytest.mark.parametrize("row", EXACT.values(), ids=EXACT)
def test_the_error_falls_with_epsilon_as_stated(row, function):
    """By 10^order from eps 1e-2 to 1e-3, or it is rounding already, as of two-sided differences on a quadratic."""
    exact = exact_values(row, GRADIENTS[function](THETA), SEEDS)
    large, small = (np.linalg.norm(values_of(row, epsilon, function, SEEDS) - exact) for epsilon in (1e-2, 1e-3))
    if row.order is None or (function is quadratic and row.order == 2):
        assert max(large, 0.1 * small) < 1e-9  # rounding of losses of order 10 over eps, or of order 1e3 over 0.1
    else:
        assert large / small == pytest.approx(10**row.order, rel=0.1)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_the_mean_over_directions_is_the_gradient(row):
    """Within five standard errors of 4,000 directions; up to a positive factor where the scale is free."""
    draws = []
    for step in range(400):
        slopes = slopes_of(row.made(1e-3), linear, range(10 * step, 10 * step + 10))
        draws.append(gradient(slopes, "x", THETA))
    mean, error = np.mean(draws, axis=0), np.std(draws, axis=0) / np.sqrt(len(draws))
    factor = (mean @ COEFFICIENTS) / (COEFFICIENTS @ COEFFICIENTS) if row.free else 1.0
    assert factor > 0
    assert (np.abs(mean - factor * COEFFICIENTS) < 5 * error + 1e-9).all()


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_the_same_losses_give_the_same_slopes_and_other_seeds_others(row):
    first, again, other = (slopes_of(row.made(1e-2), rosenbrock, seeds) for seeds in (SEEDS, SEEDS, range(8)))
    assert first == again
    assert [slope.seed for slope in first] == list(SEEDS)
    assert [slope.value for slope in first] != [slope.value for slope in other]


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_scaling_the_loss_scales_the_slopes_or_leaves_them(row):
    slopes, scaled = (
        np.array([slope.value for slope in slopes_of(row.made(1e-2), function, SEEDS)])
        for function in (quadratic, lambda x: 10 * quadratic(x) + 3)
    )
    np.testing.assert_allclose(scaled, slopes if row.free else 10 * slopes, rtol=1e-8)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_noise_in_the_losses_goes_into_the_slopes_as_stated(row):
    """Mean 0 and noise_gain * size / eps, within four standard errors. Where the scale is free: a zero of any kind is
    a zero slope, not a division by it."""
    if row.noise_gain is None:
        assert {slope.value for slope in slopes_of(row.made(1e-2), lambda x: 7.0, SEEDS)} == {0.0}
        return
    rng, size, epsilon, count = np.random.default_rng(1), 1e-3, 1e-2, 400
    clean = values_of(row, epsilon, quadratic, [5])
    noisy = np.array([values_of(row, epsilon, lambda x: quadratic(x) + rng.normal() * size, [5]) for _ in range(count)])
    expected = row.noise_gain * size / epsilon
    assert abs(noisy.mean() - clean.item()) < 4 * expected / count**0.5
    assert noisy.std() == pytest.approx(expected, rel=4 / (2 * count) ** 0.5)


def test_ranks_are_centred_and_shared_by_equals():
    assert centred_ranks(np.array([3.0, 1.0, 2.0])).tolist() == [0.5, -0.5, 0.0]
    assert centred_ranks(np.array([1.0, 1.0, 5.0])).tolist() == [-0.25, -0.25, 0.5]


def test_an_outlier_does_not_move_ranks():
    losses = np.array([0.3, 0.1, 0.9, 0.2])
    assert np.array_equal(centred_ranks(losses), centred_ranks(np.where(losses == 0.9, 1e6, losses)))


def test_hizoos_curvature_is_the_second_derivative_along_z():
    for slope in slopes_of(Hizoo(1e-2), quadratic, SEEDS):
        z = GAUSSIAN.draw(slope.seed, "x", THETA).astype(np.float64)
        assert slope.curvature == pytest.approx(z @ HESSIAN @ z, rel=1e-8)


# ---- svrg


def anchored(epsilon: float, function: Function, anchor: np.ndarray, seeds: Any) -> Svrg:
    first = Svrg(epsilon)
    return first.after({"x": anchor}, slopes_of(first, function, seeds, anchor))


def test_svrg_adds_the_anchors_gradient_to_the_difference_of_slopes():
    there = THETA + 0.3
    estimator = anchored(1e-2, quadratic, there, [1, 2, 3])
    total = gradient(slopes_of(estimator, rosenbrock, [4, 5]), "x", THETA)
    difference = gradient(slopes_of(Spsa(1e-2), rosenbrock, [4, 5]), "x", THETA) - gradient(
        slopes_of(Spsa(1e-2), rosenbrock, [4, 5], there), "x", THETA
    )
    large_batch = gradient(slopes_of(Spsa(1e-2), quadratic, [1, 2, 3], there), "x", THETA)
    np.testing.assert_allclose(total, difference + large_batch, rtol=1e-4, atol=1e-3)  # fp32 sums of order 100


def test_svrg_takes_the_variance_between_batches_out_near_the_anchor():
    """Each batch has a linear term of its own, size 1, which the control variate cancels: what is left is of |move|."""
    rng = np.random.default_rng(2)
    batches = [rng.normal(size=DIMENSION) for _ in range(200)]
    near = THETA + 0.01
    estimator = anchored(1e-2, quadratic, THETA, [1])

    def variance(made: ProbeEstimator) -> float:
        steps = []
        for batch in batches:
            slopes = slopes_of(made, lambda x, own=batch: quadratic(x) + float(own @ x), [9], near)  # type: ignore[misc]
            steps.append(gradient(slopes, "x", THETA))
        return float(np.var(steps, axis=0).sum())

    assert variance(estimator) < 1e-6 * variance(Spsa(1e-2))


def test_svrg_sets_a_new_anchor_every_so_many_steps():
    estimator, batches, points = Svrg(1e-2, steps=3, batches=4), [], []
    for step in range(7):
        batches.append(estimator.num_batches)
        slopes = slopes_of(estimator, quadratic, [step], THETA + step)
        estimator = estimator.after({"x": THETA + step}, slopes)
        points.append(None if estimator.anchor is None else float(estimator.anchor["x"][0] - THETA[0]))
    assert batches == [4, 1, 1, 4, 1, 1, 4]
    assert points == [pytest.approx(0), pytest.approx(0), None, pytest.approx(3), pytest.approx(3), None, 6]
    always = Svrg(1e-2, steps=1)
    assert always.after({"x": THETA}, slopes_of(always, quadratic, [1])).num_batches == always.batches


# ---- adaptive eps


@pytest.mark.parametrize("start", [1e-5, 1e-3, 1.0])
def test_eps_goes_to_where_curvature_and_rounding_balance(start):
    """Within a factor of 2 of 2 sqrt(rounding / curvature): the curvature is of random directions."""
    rng, size = np.random.default_rng(3), 1e-6
    estimator = AdaptiveSpsa(start, steps=1)
    path = [start]
    for step in range(60):
        seeds = range(4 * step, 4 * step + 4)
        slopes = slopes_of(estimator, lambda x: quadratic(x) + rng.normal() * size, seeds)
        estimator = estimator.after({"x": THETA}, slopes)
        path.append(estimator.epsilon)
    typical = np.median([abs(z @ HESSIAN @ z) for z in (GAUSSIAN.draw(s, "x", THETA) for s in range(200))])
    assert np.exp(np.mean(np.log(path[-20:]))) == pytest.approx(2 * (size / typical) ** 0.5, rel=0.5)
    assert max(abs(np.diff(np.log(path)))) <= np.log(2) + 1e-12


def test_the_rounding_of_fp32_losses_is_found():
    def rounded(x: np.ndarray) -> float:
        return float(np.float32(quadratic(x) + 8))

    sizes = [slopes_of(AdaptiveSpsa(1e-3), rounded, [seed])[0].rounding for seed in range(50)]
    # Between 8 and 16 the spacing is 2^-20, and rounding to it has a standard deviation of a twelfth's root.
    assert np.median([size for size in sizes if size]) == pytest.approx(2**-20 / 12**0.5, rel=0.5)


def test_eps_stays_between_measurements_and_where_there_is_nothing_to_measure():
    estimator = AdaptiveSpsa(1e-2, steps=3)
    measured = estimator.after({"x": THETA}, [replace(Slope(1, 0.5), curvature=3.0, rounding=1e-6)])
    assert measured.epsilon != estimator.epsilon
    kept = measured.after({"x": THETA}, [Slope(1, 0.5)])
    assert (kept.epsilon, kept.age) == (measured.epsilon, 2)
    assert estimator.after({"x": THETA}, slopes_of(estimator, lambda x: 1.0, [1])).epsilon == estimator.epsilon
