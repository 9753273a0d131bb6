"""The fast engine gives the plain engine's numbers, whatever is cached, shared, chunked or evicted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.conftest import KINDS_AND_SCOPES, SHARED, TARGETS, VOCABULARY, make_model
from zotune.adapter.forms import initial_theta
from zotune.adapter.spec import LoraSpec
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.plain import PlainEngine
from zotune.engine.torch.prefix_cache import NoPrefixCache, PrefixCache
from zotune.zo.draws import gaussian
from zotune.zo.protocol import AT_THETA, Example, Probe

INVOCATION = (50, 51)
TOLERANCE = 1e-5  # fp32 sums of up to 5 log-probabilities of size 10, in another order of operations
BLOCK = 8  # small, so that prompts of a few tokens are several blocks
BLOCK_BYTES = 2 * 2 * 16 * 4 * BLOCK  # of the tiny OPT: two layers, keys and values, width 16, fp32

tokens = st.integers(2, VOCABULARY - 1)


@st.composite
def batches(draw):
    """Examples whose prompts may begin alike, repeat or be empty; candidates may begin alike too."""
    shared = draw(st.lists(tokens, max_size=20))
    stems = draw(st.lists(tokens, max_size=3))
    examples = []
    for _ in range(draw(st.integers(1, 4))):
        prompt = tuple(shared[: draw(st.integers(0, 20))] + draw(st.lists(tokens, max_size=20)))
        candidates = draw(
            st.lists(st.tuples(st.integers(0, 3), st.lists(tokens, min_size=1, max_size=2)), min_size=1, max_size=4)
        )
        unique = dict.fromkeys(tuple(stems[:n] + rest) for n, rest in candidates)
        examples.append(Example(prompt, INVOCATION, tuple(unique), 0))
    repeats = draw(st.lists(st.sampled_from(examples), max_size=2))
    return examples + repeats


def some_theta(engine):
    theta = initial_theta(engine.tensor_shapes, 3)
    return {name: value + np.float32(0.1) * gaussian(11, name, value.shape) for name, value in theta.items()}


@pytest.fixture(scope="module", params=KINDS_AND_SCOPES)
def engines(request):
    """A plain engine and its theta, and a way to make fast ones."""
    kind, scope = request.param
    spec = LoraSpec(4, 8.0, TARGETS[kind], INVOCATION if scope == "activated" else None)
    plain = PlainEngine(make_model(kind), spec)
    fast = {
        "kept": TorchEngine(make_model(kind), spec, PrefixCache(1e9, BLOCK)),
        "none": TorchEngine(make_model(kind), spec, NoPrefixCache(BLOCK)),
        "tiny": TorchEngine(make_model(kind), spec, PrefixCache(3 * BLOCK_BYTES, BLOCK), max_tokens_per_forward=30),
    }
    assert not any(engine.plain_reason for engine in fast.values())
    return plain, some_theta(plain), fast


@settings(max_examples=25)
@given(batch=batches(), seeds=st.lists(st.integers(0, 99), min_size=1, max_size=8))
def test_scores_equal_the_plain_engines(engines, batch, seeds):
    plain, theta, fast = engines
    probes = [Probe(seed, distance) for seed in seeds for distance in (1e-2, -1e-2)]
    expected = plain.score(theta, [AT_THETA, *probes], batch)
    for engine in fast.values():
        scores = engine.score(theta, [AT_THETA, *probes], batch)
        np.testing.assert_allclose(scores.log_probs, expected.log_probs, rtol=TOLERANCE, atol=TOLERANCE)
        np.testing.assert_array_equal(scores.num_tokens, expected.num_tokens)


@settings(max_examples=15)
@given(batch=batches(), other=batches(), seed=st.integers(0, 99))
def test_the_same_call_gives_the_same_bits_whatever_was_cached_before(engines, batch, other, seed):
    _, theta, fast = engines
    probes = [Probe(seed, 1e-2), Probe(seed, -1e-2)]
    kept, none = fast["kept"], fast["none"]
    cold = none.score(theta, probes, batch).log_probs.tobytes()
    kept.score(theta, probes, other)
    assert kept.score(theta, probes, batch).log_probs.tobytes() == cold
    assert kept.score(theta, probes, batch).log_probs.tobytes() == cold


@settings(max_examples=15)
@given(batch=batches(), seeds=st.lists(st.integers(0, 99), min_size=1, max_size=3))
def test_computed_and_reused_tokens_add_up_to_what_the_plain_engine_computes(engines, batch, seeds):
    plain, theta, fast = engines
    probes = [Probe(seed, 1e-2) for seed in seeds]
    before = plain.stats.tokens_computed
    plain.score(theta, probes, batch)
    needed = plain.stats.tokens_computed - before
    for engine in fast.values():
        before = engine.stats.tokens_computed + engine.stats.tokens_reused
        engine.score(theta, probes, batch)
        assert engine.stats.tokens_computed + engine.stats.tokens_reused - before == needed


def make_fast(scope="activated", cache=None, **options):
    return TorchEngine(
        make_model("opt"),
        LoraSpec(4, 8.0, TARGETS["opt"], INVOCATION if scope == "activated" else None),
        cache,
        **options,
    )


BATCH = [
    Example((2, 3, 4, 5, 6), INVOCATION, ((60,), (61,)), 0),
    Example((2, 3, 4, 9), INVOCATION, ((60, 61), (60, 62), (63,)), 0),  # suffix tree: 2 + one shared token
]


def test_counters_equal_tokens_counted_by_hand_in_scope_activated():
    engine = make_fast(cache=PrefixCache(1e9, BLOCK))
    theta, probes = some_theta(engine), [Probe(1, 1e-2), Probe(1, -1e-2)]
    engine.score(theta, probes, BATCH)
    suffixes = 2 * (2 + 3)
    assert engine.stats.tokens_computed == 5 + 4 + suffixes
    assert engine.stats.forward_passes == 2  # all prompts, then all suffixes of all probes
    engine.score(theta, probes, BATCH)
    assert engine.stats.tokens_computed == 5 + 4 + 2 * suffixes
    assert engine.stats.forward_passes == 3
    rows = (5 + 2) + (4 + 3) + (4 + 2)  # what the plain engine computes: a row for each distinct beginning
    assert engine.stats.tokens_reused == 2 * 2 * rows - engine.stats.tokens_computed


def test_counters_equal_tokens_counted_by_hand_in_scope_everywhere():
    engine = make_fast("everywhere")
    shared = tuple(range(100, 110))
    batch = [Example(shared + e.prompt[3:], e.invocation, e.candidates, 0) for e in BATCH]
    engine.score(some_theta(engine), [Probe(1, 1e-2), Probe(1, -1e-2)], batch)
    assert engine.stats.tokens_computed == 2 * (10 + (2 + 2) + (1 + 2 + 1))
    assert engine.stats.forward_passes == 2


def test_prompts_that_begin_alike_keep_their_shared_blocks_once():
    engine = make_fast(cache=PrefixCache(1e9, BLOCK))
    shared = tuple(range(100, 100 + 2 * BLOCK + 3))  # the last 3 fill no block: they are computed for each
    engine.score(some_theta(engine), [AT_THETA], [Example((*shared, t), INVOCATION, ((60,),), 0) for t in (7, 8)])
    assert engine.stats.tokens_computed == 2 * BLOCK + 2 * (3 + 1) + 2 * 2


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs a model with a longer context")
@pytest.mark.slow
def test_real_models_share_blocks_and_equal_the_plain_engine():
    from transformers import AutoModelForCausalLM

    block = PrefixCache(0).block
    for name in ("opt-imdb-4m", "stories260K"):
        model = AutoModelForCausalLM.from_pretrained(SHARED / "models" / name)
        spec = LoraSpec(4, 8.0, ("q_proj", "v_proj"), INVOCATION)
        plain, fast = PlainEngine(model, spec), None
        theta = some_theta(plain)
        shared = tuple(range(100, 100 + 3 * block + 5))
        batch = [Example((*shared, *range(200, 200 + n)), INVOCATION, ((60,), (61, 62)), 0) for n in (1, 40, 90)]
        expected = plain.score(theta, [AT_THETA, Probe(1, 1e-2)], batch).log_probs
        plain.close()
        fast = TorchEngine(model, spec, PrefixCache(1e9))
        scores = fast.score(theta, [AT_THETA, Probe(1, 1e-2)], batch).log_probs
        np.testing.assert_allclose(scores, expected, rtol=TOLERANCE, atol=TOLERANCE)
        own = sum(len(example.prompt) - 3 * block for example in batch)
        assert fast.stats.tokens_computed == 3 * block + own + 2 * 3 * 3
        fast.close()


def test_nothing_computed_under_an_adapter_is_ever_served_again():
    plain = PlainEngine(make_model("opt"), LoraSpec(4, 8.0, TARGETS["opt"], INVOCATION))
    fast = make_fast(cache=PrefixCache(1e9, BLOCK))
    theta = some_theta(plain)
    for step in range(5):
        theta = {name: value + np.float32(0.3) * gaussian(step, name, value.shape) for name, value in theta.items()}
        expected = plain.score(theta, [Probe(step, 0.1)], BATCH).log_probs
        np.testing.assert_allclose(fast.score(theta, [Probe(step, 0.1)], BATCH).log_probs, expected, rtol=TOLERANCE)


def test_a_model_on_which_the_layout_fails_is_scored_plainly_with_the_reason(caplog):
    from transformers import BloomConfig, BloomForCausalLM

    caplog.set_level("INFO", logger="zotune")
    model = BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2)).eval()
    spec = LoraSpec(4, 8.0, ("query_key_value",), INVOCATION)
    plain = PlainEngine(model, spec)
    theta = some_theta(plain)
    expected = plain.score(theta, [AT_THETA], BATCH).log_probs
    plain.close()
    engine = TorchEngine(model, spec, PrefixCache(1e9, BLOCK))
    assert engine.plain_reason
    assert "without reuse" in caplog.text
    assert engine.score(theta, [AT_THETA], BATCH).log_probs.tobytes() == expected.tobytes()


class CacheMachine(RuleBasedStateMachine):
    """Any order of calls and evictions, against no cache at all: the same bits, within the budget."""

    @initialize(blocks=st.integers(0, 6))
    def start(self, blocks):
        self.budget = blocks * BLOCK_BYTES
        self.fast, self.none = make_fast(cache=PrefixCache(self.budget, BLOCK)), make_fast(cache=NoPrefixCache(BLOCK))
        self.theta = some_theta(self.none)

    @rule(batch=batches(), seed=st.integers(0, 9))
    def score(self, batch, seed):
        probes = [Probe(seed, 1e-2), Probe(seed, -1e-2)]
        expected = self.none.score(self.theta, probes, batch).log_probs.tobytes()
        assert self.fast.score(self.theta, probes, batch).log_probs.tobytes() == expected

    @rule()
    def update(self):
        self.theta = {n: v + np.float32(0.1) * gaussian(5, n, v.shape) for n, v in self.theta.items()}

    @invariant()
    def the_budget_holds_between_calls(self):
        if hasattr(self, "fast"):
            assert self.fast.cache.num_bytes <= self.budget


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=15, stateful_step_count=8, deadline=None)
