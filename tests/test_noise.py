"""z(seed) is a pure function of noise, seed, tensor name and element; every kind has mean 0 and covariance 1."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zotune.zo.draws import SEED_BITS, derive_seed, gaussian, permutation, uniform
from zotune.zo.noise import GAUSSIAN, KINDS, Noise, layer_of, small_entries
from zotune.zo.noise_ahead import AHEAD
from zotune.zo.protocol import AT_THETA, Probe, points

seeds = st.integers(0, 2**SEED_BITS - 1)


def test_the_stream_is_pinned_so_that_old_journals_replay():
    assert gaussian(7, "a.lora_A.weight", (3,)).tolist() == [
        -1.1055567264556885,
        -0.15334635972976685,
        2.332746744155884,
    ]
    assert uniform(7, "a", (2,), 0.5).tolist() == [-0.18839383125305176, 0.2029399275779724]
    assert permutation(7, "epoch/0", 8).tolist() == [7, 0, 1, 5, 2, 6, 3, 4]
    assert derive_seed(0, "direction", 0, 0) == 4178991787820930


@given(seeds, st.text(), st.integers(1, 9), st.integers(1, 9))
def test_the_same_arguments_give_the_same_bits_whatever_was_drawn_between(seed, name, rows, columns):
    first = gaussian(seed, name, (rows, columns))
    gaussian(seed + 1, name, (4, 4))
    assert first.dtype == np.float32
    assert np.array_equal(first, gaussian(seed, name, (rows, columns)))


@given(seeds, st.text(), st.text())
def test_two_tensors_never_share_noise(seed, name, other):
    if name != other:
        assert not np.array_equal(gaussian(seed, name, (8,)), gaussian(seed, other, (8,)))


def test_noise_is_standard_normal_and_uncorrelated_between_seeds_and_names():
    draws = np.stack([gaussian(s, n, (20_000,)) for s in (1, 2) for n in ("A", "B")])
    assert np.allclose(draws.mean(axis=1), 0, atol=4 / np.sqrt(20_000))  # four standard errors
    assert np.allclose(draws.var(axis=1), 1, atol=4 * np.sqrt(2 / 20_000))
    assert np.allclose(np.corrcoef(draws), np.eye(4), atol=4 / np.sqrt(20_000))


def test_derived_seeds_differ_and_fit_into_a_json_number():
    derived = {derive_seed(0, "direction", step, k) for step in range(500) for k in range(20)}
    assert len(derived) == 10_000
    assert max(derived) < 2**SEED_BITS


MATRIX = np.zeros((3, 4), dtype=np.float32)
PINNED = {
    "gaussian": [-1.1055567264556885, -0.15334635972976685],
    "rademacher": [1.0, -1.0],
    "sphere": [-0.8453528881072998, -0.11725475639104843],
    "low_rank": [-2.4435369968414307, -0.44255948066711426],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_pinned_so_that_old_journals_replay(kind):
    assert Noise(kind).at(0, 0).draw(7, "a.lora_A.weight", np.zeros((2, 2)))[0].tolist() == PINNED[kind]


def test_noise_of_before_is_the_default():
    assert np.array_equal(GAUSSIAN.draw(7, "a", MATRIX), gaussian(7, "a", MATRIX.shape))
    assert GAUSSIAN.at(3, 1000) is GAUSSIAN


@pytest.mark.parametrize("kind", KINDS)
def test_mean_zero_and_covariance_one(kind):
    """Within five standard errors, taken from the draws themselves; low rank over many periods, U anew in each."""
    noise, count = Noise(kind, steps=1), 8000
    draws = np.stack([noise.at(1, s).draw(s, "m", MATRIX).ravel() for s in range(count)]).astype(np.float64)
    assert (np.abs(draws.mean(axis=0)) < 5 * draws.std(axis=0) / count**0.5).all()
    products = draws[:, :, None] * draws[:, None, :]
    error = products.std(axis=0) / count**0.5 + 1e-6  # a square of Rademacher noise does not vary; fp32 rounds it
    assert (np.abs(products.mean(axis=0) - np.eye(MATRIX.size)) < 5 * error).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_shares_noise_between_tensors_seeds_or_runs(kind):
    large = np.zeros((50, 40), dtype=np.float32)
    noise = Noise(kind).at(1, 0)
    draws = [noise.draw(seed, name, large).ravel() for seed in (1, 2) for name in ("a.lora_A", "a.lora_B", "b.lora_A")]
    # Low rank has 90 numbers a rank, and draws of one tensor share their U: larger correlations by chance.
    assert np.abs(np.corrcoef(draws) - np.eye(len(draws))).max() < (0.35 if kind == "low_rank" else 5 / 2000**0.5)
    if kind == "low_rank":
        assert not np.array_equal(draws[0], Noise(kind).at(2, 0).draw(1, "a.lora_A", large).ravel())


def test_rademacher_noise_is_plus_or_minus_one():
    assert set(Noise("rademacher").draw(3, "a", np.zeros(100)).tolist()) == {-1.0, 1.0}


def test_sphere_noise_has_the_norm_of_the_root_of_its_size():
    for shape in ((5,), (3, 4), (100, 7)):
        assert np.linalg.norm(Noise("sphere").draw(3, "a", np.zeros(shape))) == pytest.approx(np.prod(shape) ** 0.5)


def test_low_rank_noise_keeps_its_subspace_for_a_period():
    noise, large = Noise("low_rank", rank=2, steps=10), np.zeros((12, 9), dtype=np.float32)
    first, same, later = (noise.at(0, step).draw(step, "a", large) for step in (0, 9, 10))
    assert np.linalg.matrix_rank(first, tol=1e-4) == 2
    assert np.linalg.matrix_rank(np.hstack([first, same]), tol=1e-4) == 2
    assert np.linalg.matrix_rank(np.hstack([first, later]), tol=1e-4) == 4
    vector = np.zeros(9, dtype=np.float32)
    assert np.array_equal(noise.at(0, 0).draw(1, "a", vector), gaussian(1, "a", (9,)))


def test_sparsity_moves_the_entries_of_small_magnitude_only():
    value = gaussian(1, "theta", (20, 10))
    z = Noise(sparsity=0.75).draw(5, "a", value)
    moved = z != 0
    assert moved.sum() == 50
    assert np.abs(value[moved]).max() < np.abs(value[~moved]).min()
    assert np.array_equal(z[moved], gaussian(5, "a", value.shape)[moved])
    assert small_entries(np.zeros((3, 4)), 0.75).all()  # where all are equal, as in LoRA's B at the start, all move


def test_blocks_take_turns_and_cover_every_layer():
    theta = {f"model.layers.{layer}.lora_B.weight": MATRIX for layer in range(5)}
    noise = Noise(blocks=2, steps=3)
    moved = [
        [layer_of(name) for name, z in noise.at(0, step).direction(1, theta).items() if z.any()] for step in range(12)
    ]
    assert moved == ([[0, 2, 4]] * 3 + [[1, 3]] * 3) * 2
    assert layer_of("transformer.h.11.attn.c_attn.lora_A.weight") == 11
    assert layer_of("no.layer") == 0


ALL = [*(Noise(kind) for kind in KINDS), Noise(sparsity=0.5), Noise("rademacher", blocks=2, sparsity=0.3)]


@pytest.mark.parametrize("noise", ALL, ids=str)
def test_the_fast_engine_probes_the_same_points_to_the_bit(noise):
    theta = {f"m.{layer}.{m}": gaussian(1, f"{layer}{m}", (4, 6)) for layer in range(3) for m in "AB"}
    anchor = {name: value + np.float32(1) for name, value in theta.items()}
    noise = noise.at(9, 60)
    probes = [Probe(seed, distance, noise) for seed in (1, 2) for distance in (0.1, -0.1)]
    probes += [AT_THETA, *(replace(probe, base=anchor) for probe in probes), Probe(1, 0.1)]
    for probe, found in zip(probes, points(theta, probes), strict=True):
        for name, value in probe.of(theta).items():
            assert value.dtype == np.float32
            assert value.tobytes() == found[name].tobytes()


@given(
    kind=st.sampled_from(sorted(KINDS)),
    sparsity=st.sampled_from([0.0, 0.5]),
    blocks=st.sampled_from([1, 2]),
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=3),
)
def test_noise_drawn_ahead_is_the_noise_drawn_when_needed(kind, sparsity, blocks, seeds):
    theta = {f"layers.{i}.w": gaussian(7, str(i), (3, 4 + i)) for i in range(3)}
    noise = Noise(kind=kind, sparsity=sparsity, blocks=blocks)
    expected = [noise.direction(seed, theta) for seed in seeds]
    AHEAD.start(noise, seeds, theta)
    for seed, direction in zip(seeds, expected, strict=True):
        assert AHEAD.drawn(noise, seed).keys() == theta.keys()
        for name, z in noise.direction(seed, theta).items():
            assert z.tobytes() == direction[name].tobytes()


def test_noise_is_kept_for_two_steps_and_only_where_it_is_small(monkeypatch):
    theta = {"w": np.zeros((4, 4), dtype=np.float32)}
    for seed in (1, 2, 3):
        AHEAD.start(GAUSSIAN, [seed], theta)
    assert [bool(AHEAD.drawn(GAUSSIAN, seed)) for seed in (1, 2, 3)] == [False, True, True]
    assert AHEAD.drawn(GAUSSIAN, 3)["w"] is AHEAD.drawn(GAUSSIAN, 3)["w"]
    monkeypatch.setattr("zotune.zo.noise_ahead.MAX_BYTES_AHEAD", 2 * theta["w"].nbytes)
    AHEAD.start(GAUSSIAN, [4, 5, 6], theta)
    assert not AHEAD.drawn(GAUSSIAN, 4)
