"""SGD against PyTorch's, schedules against transformers', objectives against torch.nn.functional."""

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from zotune.engine.protocol import Example, Scores
from zotune.estimators import Slope
from zotune.noise import gaussian
from zotune.objectives import cross_entropy, token_nll
from zotune.optimizers import Sgd, gradient
from zotune.schedules import SCHEDULES, make_schedule


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
        slopes = [Slope(10 * index + k, value) for k, value in enumerate(values)]
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(gradient(slopes, name, theta[name]))
        reference.step()
        theta, state = optimizer.update(theta, state, slopes, 0.01)
    for name, parameter in parameters.items():  # fp32, some ten operations
        np.testing.assert_allclose(theta[name], parameter.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_update_writes_neither_theta_nor_state():
    optimizer = Sgd(momentum=0.9)
    theta = {"a": np.ones(3, dtype=np.float32)}
    state = optimizer.init(theta)
    optimizer.update(theta, state, [Slope(1, 2.0)], 0.1)
    assert theta["a"].tolist() == [1, 1, 1]
    assert state["momentum/a"].tolist() == [0, 0, 0]


def test_the_gradient_is_the_mean_over_directions():
    value = np.zeros(5, dtype=np.float32)
    one = gradient([Slope(1, 3.0)], "a", value)
    np.testing.assert_array_equal(one, np.float32(3) * gaussian(1, "a", (5,)))
    both = gradient([Slope(1, 3.0), Slope(2, -1.0)], "a", value)
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
    losses = cross_entropy(Scores(log_probs, num_tokens), batch)
    for probe in range(probes):
        logits = torch.tensor(log_probs[probe].astype(np.float64) / num_tokens)
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="none")
        np.testing.assert_allclose(losses[probe], expected.numpy(), rtol=1e-12, atol=1e-14)


def test_absent_candidates_do_not_change_the_cross_entropy():
    batch = [Example((), (), ((1,), (2,)), 1), Example((), (), ((1,), (2,), (3,)), 2)]
    log_probs = np.array([[[-1, -2, -np.inf], [-1, -2, -3]]], dtype=np.float32)
    losses = cross_entropy(Scores(log_probs, np.array([[1, 1, 0], [1, 1, 1]])), batch)
    assert losses[0, 0] == pytest.approx(np.log(1 + np.e))
    assert np.isfinite(losses).all()


def test_token_nll_is_the_mean_over_tokens():
    scores = Scores(np.array([[[-6.0], [-5.0]]], dtype=np.float32), np.array([[3], [2]]))
    assert token_nll(scores, []).tolist() == [[2.0, 2.5]]
