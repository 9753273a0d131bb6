"""Optimizers against PyTorch's, schedules against transformers', objectives against torch.nn.functional.

Every optimizer has a row in the contract: it replays from a journal to the bit, and writes none of its arguments.
"""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from zotune.adapter.forms import initial_theta
from zotune.adapter.spec import LoraSpec
from zotune.run.journal import Entry, Header, Journal, read_journal, replay
from zotune.zo.draws import derive_seed, gaussian
from zotune.zo.estimators import Slope
from zotune.zo.noise import KINDS, Noise
from zotune.zo.objectives import cross_entropy, token_nll
from zotune.zo.optimizers import (
    CLIP_AFTER,
    CLIP_WINDOW,
    OPTIMIZERS,
    Adam,
    AdamW,
    HizooSgd,
    Muon,
    Sgd,
    Sign,
    clipped,
    orthogonalized,
)
from zotune.zo.protocol import Example, Scores, Theta
from zotune.zo.schedules import SCHEDULES, make_schedule
from zotune.zo.updates import Gradient, Slopes


@given(
    st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=3), min_size=1, max_size=5),
    st.sampled_from([0.0, 0.9]),
    st.sampled_from([0.0, 0.1]),
)
def test_sgd_equals_torch_optim_sgd(steps, momentum, weight_decay):
    theta = {"a": np.ones((2, 3), dtype=np.float32), "b": np.full((4,), -2, dtype=np.float32)}
    parameters = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in theta.items()}
    reference = torch.optim.SGD(parameters.values(), lr=0.01, momentum=momentum, weight_decay=weight_decay)
    optimizer = Sgd(momentum=momentum, weight_decay=weight_decay)
    state = optimizer.init(theta)
    for index, values in enumerate(steps):
        update = Slopes(tuple(Slope(10 * index + k, value) for k, value in enumerate(values)))
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(update.gradient(name, theta[name]))
        reference.step()
        theta, state = optimizer.update(theta, state, update, 0.01)
    for name, parameter in parameters.items():  # fp32, some ten operations
        np.testing.assert_allclose(theta[name], parameter.detach().numpy(), rtol=1e-5, atol=1e-6)


STEPS = st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=3), min_size=1, max_size=5)


def run_both(optimizer, reference, parameters, theta, steps, learning_rate):
    """Theta after `steps`, and the parameters of PyTorch's optimizer after the same gradients."""
    state = optimizer.init(theta)
    for index, values in enumerate(steps):
        update = Slopes(tuple(Slope(10 * index + k, value) for k, value in enumerate(values)))
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(update.gradient(name, theta[name]))
        reference.step()
        theta, state = optimizer.update(theta, state, update, learning_rate)
    return theta


@pytest.mark.parametrize(("ours", "theirs"), [(Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW)])
@given(STEPS, st.sampled_from([0.0, 0.1]), st.sampled_from([(0.9, 0.999), (0.5, 0.7)]))
def test_adam_and_adamw_equal_pytorchs(ours, theirs, steps, weight_decay, betas):
    # A gradient smaller than Adam's epsilon is a matter of rounding; both sides see the same one.
    theta = {"a": np.ones((2, 3), dtype=np.float32), "b": np.full((4,), -2, dtype=np.float32)}
    parameters = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in theta.items()}
    reference = theirs(parameters.values(), lr=0.01, betas=betas, eps=1e-6, weight_decay=weight_decay)
    optimizer = ours(weight_decay=weight_decay, beta1=betas[0], beta2=betas[1], eps=1e-6)
    theta = run_both(optimizer, reference, parameters, theta, steps, 0.01)
    for name, parameter in parameters.items():  # fp32; m / sqrt(v) loses digits where m nearly cancels
        np.testing.assert_allclose(theta[name], parameter.detach().numpy(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("shape", [(4, 9), (12, 3), (5, 5)])
def test_muon_equals_pytorchs_up_to_its_bfloat16(shape):
    theta = {"a": gaussian(0, "theta", shape)}
    parameters = {"a": torch.nn.Parameter(torch.tensor(theta["a"]))}
    reference = torch.optim.Muon(parameters.values(), lr=0.1, weight_decay=0.05, momentum=0.9)
    after = run_both(
        Muon(weight_decay=0.05, momentum=0.9), reference, parameters, theta, [[1.0, 0.5, -2.0], [3.0], [-1.0, 0.2]], 0.1
    )
    # Three steps of 0.1 times an orthogonal matrix whose entries PyTorch has to 2^-8, through five rounds of growth.
    np.testing.assert_allclose(after["a"], parameters["a"].detach().numpy(), atol=0.02)
    assert np.abs(after["a"] - theta["a"]).max() > 0.1


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_newton_schulz_brings_singular_values_near_one_and_keeps_directions(rows, columns, seed):
    matrix = gaussian(seed, "m", (rows, columns))
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    inside = left.T @ orthogonalized(matrix) @ right.T  # diagonal, but for rounding of fp32
    # Muon's coefficients leave 0.7 .. 1.2 of what is not lost to begin with: 3.44^5 of the norm is 485.
    kept = values / np.linalg.norm(values) > 0.01
    assert (inside.diagonal()[kept] > 0.6).all()
    assert (inside.diagonal() < 1.3).all()
    assert np.abs(inside - np.diag(inside.diagonal())).max() < 1e-3


def test_sign_moves_every_number_by_the_learning_rate():
    theta = {"a": np.ones(6, dtype=np.float32)}
    optimizer = Sign(momentum=0.5)
    after, state = optimizer.update(theta, optimizer.init(theta), Slopes((Slope(1, -2.0),)), 0.25)
    first = Slopes((Slope(1, -2.0),)).gradient("a", theta["a"])
    np.testing.assert_array_equal(after["a"], 1 - 0.25 * np.sign(first))
    later, _ = optimizer.update(after, state, Slopes((Slope(2, 1.0),)), 0.25)
    mean = 0.25 * first + 0.5 * Slopes((Slope(2, 1.0),)).gradient("a", theta["a"])
    np.testing.assert_allclose(later["a"], after["a"] - 0.25 * np.sign(mean))
    decayed, _ = Sign(weight_decay=0.5).update(theta, Sign().init(theta), Slopes((Slope(1, 0.0),)), 0.1)
    np.testing.assert_allclose(decayed["a"], 0.95, rtol=1e-6)


def test_hizoo_finds_the_diagonal_of_a_quadratic_and_divides_by_it():
    """From exact curvatures, within four standard errors of 20,000 directions. Without the -1 it is off by 5.5."""
    diagonal, count = np.array([10.0, 1.0, 0.1]), 20_000
    theta = {"x": np.zeros(3, dtype=np.float32)}
    squares = np.stack([gaussian(seed, "x", (3,)).astype(np.float64) ** 2 for seed in range(count)])
    curvatures = squares @ diagonal
    slopes = tuple(Slope(seed, 0.0, curvature=curvature) for seed, curvature in enumerate(curvatures.tolist()))
    optimizer = HizooSgd(smoothing=0.9999)
    _, state = optimizer.update(theta, optimizer.init(theta), Slopes(slopes), 0.1)
    error = (curvatures[:, None] * (squares - 1) / 2).std(axis=0) / count**0.5
    assert (np.abs(state["diagonal/x"] - diagonal) < 4 * error).all()
    assert (error < [0.4, 0.2, 0.2]).all()
    state = {"diagonal/x": np.array([4.0, 2.0, 1.0], dtype=np.float32)}
    after, _ = HizooSgd(smoothing=1e-9).update(theta, state, Slopes((Slope(1, 2.0, curvature=0.0),)), 0.1)
    np.testing.assert_allclose(after["x"], -0.1 * 2 * gaussian(1, "x", (3,)) / [4, 2, 1], rtol=1e-6)


def test_clipping_cuts_what_is_far_beyond_the_running_median():
    slopes = [Slope(seed, (-1) ** seed * (1 + seed / 10)) for seed in range(CLIP_AFTER)]
    kept, sizes = clipped(slopes, np.zeros(0), 2.0)
    assert kept == slopes
    median = np.median([abs(slope.value) for slope in slopes])
    (high, low, plain), sizes = clipped([Slope(1, 1e6), Slope(2, -1e6), Slope(3, 0.5)], sizes, 2.0)
    assert (high.value, low.value, plain.value) == (2 * median, -2 * median, 0.5)
    assert sizes[-3:].tolist() == [1e6, 1e6, 0.5]  # uncut, so that the median follows slopes that really grow
    _, sizes = clipped([Slope(seed, 1.0) for seed in range(2 * CLIP_WINDOW)], sizes, 2.0)
    assert len(sizes) == CLIP_WINDOW


# ---- the contract

SHAPES = {"m.0.lora_A.weight": (2, 3), "m.1.lora_B.weight": (4, 2), "v": (5,)}
CURVATURE = {"hizoo": 1.5}
ROWS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd"},
    "momentum": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.01},
    "clip": {"name": "sgd", "clip": 2.0},
    "sign": {"name": "sign", "weight_decay": 0.01, "clip": 1.5},
    "adam": {"name": "adam", "weight_decay": 0.01, "clip": 3.0},
    "adamw": {"name": "adamw", "weight_decay": 0.01},
    "muon": {"name": "muon", "weight_decay": 0.01},
    "hizoo": {"name": "hizoo", "weight_decay": 0.01, "smoothing": 0.1},
}
NOISES = [*(Noise(kind, steps=3) for kind in KINDS), Noise(sparsity=0.5), Noise(blocks=2, steps=3)]


def test_every_optimizer_has_a_row():
    assert {row["name"] for row in ROWS.values()} == set(OPTIMIZERS)


def live_run(header: Header, num_steps: int) -> tuple[list[Entry], Any, Any]:
    """A run of `num_steps` steps of two directions with slopes as they come, one of them far out."""
    optimizer = header.make_optimizer()
    theta: Theta = initial_theta(header.tensors, header.seed)
    state, entries, rng = optimizer.init(theta), [], np.random.default_rng(4)
    for step in range(num_steps):
        slopes = tuple(
            Slope(
                derive_seed(header.seed, "direction", step, k),
                float(rng.standard_cauchy()),
                header.noise.at(header.seed, step),
                curvature=CURVATURE.get(header.optimizer["name"]),
            )
            for k in range(2)
        )  # fmt: skip
        entries.append(Entry(step + 1, 0.5, 0.01 / (1 + step), Slopes(slopes)))
        theta, state = optimizer.update(theta, state, Slopes(slopes), entries[-1].learning_rate)
    return entries, theta, state


@pytest.mark.parametrize("noise", NOISES, ids=str)
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_journal_replays_every_optimizer_to_the_bit(row, noise, tmp_path):
    header = Header(
        seed=3, base_model="a/b", tensors=SHAPES, lora=LoraSpec(2, 4.0, ("m",)), optimizer=row, data={}, noise=noise
    )
    entries, theta, state = live_run(header, 12)
    journal = Journal.create(tmp_path / "journal.jsonl", header)
    for entry in entries:
        journal.append(entry)
    journal.close()
    assert read_journal(tmp_path / "journal.jsonl") == (header, entries)
    replayed = replay(*read_journal(tmp_path / "journal.jsonl"))
    for live, again in zip((theta, state), replayed, strict=True):
        assert {name: value.tobytes() for name, value in live.items()} == {n: v.tobytes() for n, v in again.items()}
    assert {value.dtype for value in theta.values()} == {np.dtype(np.float32)}
    assert all(np.isfinite(value).all() for value in theta.values())


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_update_writes_neither_theta_nor_state(row):
    optimizer = OPTIMIZERS[row["name"]](**{name: value for name, value in row.items() if name != "name"})
    theta: dict[str, np.ndarray] = initial_theta(SHAPES, 1)
    state = optimizer.init(theta)
    for array in (*theta.values(), *state.values()):
        array.flags.writeable = False
    update = Slopes((Slope(1, 2.0, curvature=1.0),))
    after, next_state = optimizer.update(theta, state, update, 0.1)
    assert any((after[name] != theta[name]).any() for name in theta)
    assert next_state.keys() == state.keys()


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "hizoo"])
def test_a_gradient_updates_as_the_slopes_do_that_add_up_to_it_and_is_not_written(name):
    optimizer = OPTIMIZERS[name](weight_decay=0.1)
    theta: Theta = initial_theta(SHAPES, 1)
    both = [(theta, optimizer.init(theta))] * 2
    for step in range(3):
        slopes = Slopes((Slope(2 * step, 2.0), Slope(2 * step + 1, -0.5)))
        gradient = Gradient({name: slopes.gradient(name, value) for name, value in theta.items()})
        for tensor in gradient.tensors.values():
            tensor.flags.writeable = False
        both = [optimizer.update(*before, update, 0.1) for before, update in zip(both, (slopes, gradient), strict=True)]
    first, second = both
    for by_slopes, by_gradient in zip(first, second, strict=True):
        assert {n: v.tobytes() for n, v in by_slopes.items()} == {n: v.tobytes() for n, v in by_gradient.items()}


@pytest.mark.parametrize("optimizer", [Sgd(clip=3.0), HizooSgd()], ids=str)
def test_what_reads_the_slopes_one_by_one_takes_no_gradient(optimizer):
    theta: Theta = initial_theta(SHAPES, 1)
    with pytest.raises(AssertionError):
        optimizer.update(theta, optimizer.init(theta), Gradient(theta), 0.1)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_weight_decay_alone_shrinks_theta_by_rate_times_decay(row):
    """With zero slopes: by 1 - 0.1 * 0.5 in one step where it is decoupled or in SGD's gradient; Adam normalises it."""
    options = {"weight_decay": 0.5, **({"momentum": 0.0} if row["name"] in ("sgd", "sign", "muon") else {})}
    optimizer = OPTIMIZERS[row["name"]](**options)
    theta = {"a": np.array([2.0, -4.0], dtype=np.float32)}
    after, _ = optimizer.update(theta, optimizer.init(theta), Slopes((Slope(1, 0.0, curvature=0.0),)), 0.1)
    expected = [1.9, -3.9] if row["name"] == "adam" else [1.9, -3.8]
    np.testing.assert_allclose(after["a"], expected, rtol=1e-6)


def test_the_gradient_is_the_mean_over_directions():
    value = np.zeros(5, dtype=np.float32)
    one = Slopes((Slope(1, 3.0),)).gradient("a", value)
    np.testing.assert_array_equal(one, np.float32(3) * gaussian(1, "a", (5,)))
    both = Slopes((Slope(1, 3.0), Slope(2, -1.0))).gradient("a", value)
    np.testing.assert_allclose(both, (3 * gaussian(1, "a", (5,)) - gaussian(2, "a", (5,))) / 2, rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup_steps", [0, 7])
def test_schedules_equal_those_of_transformers(name, warmup_steps):
    if name == "constant" and warmup_steps:
        pytest.skip("refused by the configuration")
    parameter = torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([parameter], lr=0.5)
    reference = transformers.get_scheduler(name, sgd, num_warmup_steps=warmup_steps, num_training_steps=40)
    schedule = make_schedule(name, 0.5, 40, warmup_steps)
    for step in range(41):
        assert schedule(step) == pytest.approx(sgd.param_groups[0]["lr"], abs=1e-12)
        sgd.step()
        reference.step()


@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 5), st.integers(2, 6))
def test_cross_entropy_equals_torchs_over_length_normalised_candidates(seed, probes, examples, candidates):
    rng = np.random.default_rng(seed)
    log_probs = -rng.exponential(5, size=(probes, examples, candidates)).astype(np.float32)
    num_tokens = rng.integers(1, 5, size=(examples, candidates))
    labels = rng.integers(0, candidates, size=examples)
    batch = [Example((), (), ((1,),) * candidates, int(label)) for label in labels]
    losses = cross_entropy.losses(Scores(log_probs, num_tokens), batch)
    for probe in range(probes):
        logits = torch.tensor(log_probs[probe].astype(np.float64) / num_tokens)
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="none")
        np.testing.assert_allclose(losses[probe], expected.numpy(), rtol=1e-12, atol=1e-14)


def test_absent_candidates_do_not_change_the_cross_entropy():
    batch = [Example((), (), ((1,), (2,)), 1), Example((), (), ((1,), (2,), (3,)), 2)]
    log_probs = np.array([[[-1, -2, -np.inf], [-1, -2, -3]]], dtype=np.float32)
    losses = cross_entropy.losses(Scores(log_probs, np.array([[1, 1, 0], [1, 1, 1]])), batch)
    assert losses[0, 0] == pytest.approx(np.log(1 + np.e))
    assert np.isfinite(losses).all()


def test_token_nll_is_the_mean_over_tokens():
    scores = Scores(np.array([[[-6.0], [-5.0]]], dtype=np.float32), np.array([[3], [2]]))
    assert token_nll.losses(scores, []).tolist() == [[2.0, 2.5]]
