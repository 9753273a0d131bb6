"""A pool of engines gives the numbers of one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import make_model
from tests.test_fast_engine import INVOCATION, TARGETS, batches, some_theta
from zotune.adapter.spec import LoraSpec
from zotune.engine.pool import EnginePool
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.plain import PlainEngine
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.zo.protocol import AT_THETA, Example, Probe, Sampling

SPEC = LoraSpec(4, 8.0, TARGETS["opt"], INVOCATION)


@pytest.fixture(scope="module")
def engines():
    pool = EnginePool([TorchEngine(make_model("opt"), SPEC, PrefixCache(1e9)) for _ in range(3)])
    yield PlainEngine(make_model("opt"), SPEC), pool
    pool.close()


@settings(max_examples=20)
@given(batch=batches(), num_probes=st.integers(1, 7))
def test_scores_are_those_of_one_engine_in_the_order_asked_for(engines, batch, num_probes):
    plain, pool = engines
    theta, probes = some_theta(plain), [AT_THETA, *(Probe(seed, 0.1) for seed in range(num_probes - 1))]
    before = pool.stats
    expected, scores = plain.score(theta, probes, batch), pool.score(theta, probes, batch)
    np.testing.assert_array_equal(scores.num_tokens, expected.num_tokens)
    np.testing.assert_allclose(scores.log_probs, expected.log_probs, rtol=1e-5, atol=1e-5)
    assert pool.stats.forward_passes > before.forward_passes


def test_texts_are_those_of_one_engine(engines):
    plain, pool = engines
    theta, prompts = some_theta(plain), [Example((2, 3 + n), INVOCATION, ((),)) for n in range(5)]
    probes = [AT_THETA, Probe(1, 0.5)]
    assert pool.generate(theta, probes, prompts, Sampling(4)) == plain.generate(theta, probes, prompts, Sampling(4))


def test_it_has_the_base_weights_of_its_engines(engines):
    plain, pool = engines
    assert pool.identity() == plain.identity()


def test_a_pool_serves_what_its_engines_do_but_derivatives(engines):
    _, pool = engines
    assert pool.why_not("scores") is None
    assert pool.why_not("generations") is None
    assert "a pool of engines" in pool.why_not("tangents")
    assert "a pool of engines" in pool.why_not("gradients")
