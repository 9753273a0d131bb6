"""z(seed) is a pure function of seed, tensor name and element."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from zotune.noise import SEED_BITS, derive_seed, gaussian, permutation, uniform

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
