"""Gradients of the torch engines against autograd on transformers and PEFT, each other, and forward mode."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel

from tests.conftest import KINDS_AND_SCOPES, TARGETS, make_model
from tests.gradients import (
    BATCH,
    ENGINES,
    FORMS,
    SCOPES,
    TOLERANCE,
    array,
    assert_close,
    assert_close_to_terms,
    bits,
    candidates_log_probs,
    cotangents,
    counts_of,
    drawn,
    flat,
    make_fast,
    make_spec,
    mean_loss,
    terms_of,
)
from tests.test_fast_engine import BLOCK, BLOCK_BYTES, batches, some_theta
from zotune.adapter.peft_files import save_adapter
from zotune.adapter.spec import PROMPT_EMBEDDINGS, PromptSpec
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.plain import PlainEngine
from zotune.engine.torch.prefix_cache import NoPrefixCache, PrefixCache
from zotune.zo.noise import GAUSSIAN
from zotune.zo.protocol import AT_THETA, Example, Probe, Scores

# ---- against others' code and each other


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_gradient_equals_autograds_on_peft(make, scope, kind, tmp_path):
    """PEFT's own LoRA and aLoRA, whole sequences, and a loss that is written out here."""
    engine = make(make_model(kind), make_spec(kind, scope))
    theta = some_theta(engine)
    save_adapter(tmp_path, theta, engine.spec, "none")
    reference = PeftModel.from_pretrained(make_model(kind), tmp_path, is_trainable=True).eval()
    loss = mean_loss(candidates_log_probs(reference, BATCH), counts_of(BATCH), [e.label for e in BATCH])
    loss.backward()
    expected = {
        name.replace(".default", ""): array(parameter.grad)
        for name, parameter in reference.named_parameters()
        if parameter.requires_grad
    }
    scores, gradient = engine.gradient(theta, BATCH, cotangents(BATCH))
    assert_close(gradient, {name: expected[name] for name in theta})
    ours = mean_loss(torch.tensor(scores.log_probs[0]), torch.tensor(scores.num_tokens), [e.label for e in BATCH])
    assert float(ours) == pytest.approx(loss.item(), rel=TOLERANCE)


@pytest.fixture(scope="module", params=KINDS_AND_SCOPES)
def pair(request):
    kind, scope = request.param
    fast, plain = make_fast(kind, scope), PlainEngine(make_model(kind), make_spec(kind, scope))
    assert fast.plain_reason is None
    return fast, plain, some_theta(plain)


@settings(max_examples=20)
@given(batch=batches(), seed=st.integers(0, 99))
def test_gradient_through_the_suffix_equals_that_of_whole_sequences(pair, batch, seed):
    fast, plain, theta = pair
    (scores, gradient), (whole, expected) = (engine.gradient(theta, batch, drawn(seed)) for engine in (fast, plain))
    np.testing.assert_allclose(scores.log_probs, whole.log_probs, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_array_equal(scores.num_tokens, whole.num_tokens)
    assert_close_to_terms(gradient, expected, terms_of(plain, theta, batch, seed))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
@pytest.mark.slow
def test_gradient_along_directions_equals_the_slopes_of_forward_mode(make, scope, kind, form):
    engine = make(make_model(kind), make_spec(kind, scope, form))
    theta, weights = some_theta(engine), drawn(3)
    scores, gradient = engine.gradient(theta, BATCH, weights)
    assert list(gradient) == list(engine.tensor_shapes)
    tangents = engine.score(theta, [Probe(seed, 0.0, derivative=True) for seed in range(4)], BATCH).tangents
    slopes = (weights(scores) * tangents).sum(axis=(1, 2))
    ours = [flat(gradient) @ flat(GAUSSIAN.direction(seed, theta)) for seed in range(4)]
    np.testing.assert_allclose(ours, slopes, rtol=0, atol=1e-4 * np.abs(slopes).max())


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_gradient_of_a_soft_prompt_equals_autograds(make, kind):
    spec = PromptSpec(3)
    engine = make(make_model(kind), spec)
    theta = some_theta(engine)
    batch = [Example(spec.virtual_tokens + e.prompt, e.invocation, e.candidates, e.label) for e in BATCH]
    reference = make_model(kind)
    vectors = torch.tensor(theta[PROMPT_EMBEDDINGS], requires_grad=True)
    words: Any = reference.get_input_embeddings().weight

    def embed(ids):
        return torch.stack([vectors[-1 - i] if i < 0 else words[i] for i in ids])[None]

    mean_loss(
        candidates_log_probs(reference, batch, embed), counts_of(batch), [e.label for e in batch]
    ).backward()  # fmt: skip
    assert engine.why_not("gradients") is None
    _, gradient = engine.gradient(theta, batch, cotangents(batch))
    assert_close(gradient, {PROMPT_EMBEDDINGS: array(vectors.grad)})


# ---- what must not matter


@settings(max_examples=10)
@given(batch=batches(), other=batches(), seed=st.integers(0, 99))
@pytest.mark.slow
def test_the_same_call_gives_the_same_bits_whatever_was_cached_before(batch, other, seed):
    engine, none = make_fast(cache=PrefixCache(1e9, BLOCK)), make_fast(cache=NoPrefixCache(BLOCK))
    tiny = make_fast(cache=PrefixCache(3 * BLOCK_BYTES, BLOCK))
    theta = some_theta(engine)
    cold_scores, cold = none.gradient(theta, batch, drawn(seed))
    engine.score(theta, [Probe(seed, 1e-2)], other)
    engine.gradient(theta, other, drawn(seed))
    for warm in (engine, engine, tiny, tiny):
        scores, gradient = warm.gradient(theta, batch, drawn(seed))
        assert bits(gradient) == bits(cold)
        assert scores.log_probs.tobytes() == cold_scores.log_probs.tobytes()
        assert tiny.cache.num_bytes <= 3 * BLOCK_BYTES


@settings(max_examples=10)
@given(batch=batches(), budget=st.integers(1, 60), seed=st.integers(0, 99))
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.slow
def test_neither_packs_nor_pieces_of_the_head_change_it(scope, batch, budget, seed):
    whole = make_fast(scope=scope)
    theta = some_theta(whole)
    packed = make_fast(scope=scope, max_tokens_per_forward=budget)
    packed.plain.max_tokens_per_forward = budget
    pieces = make_fast(scope=scope)
    pieces.head.max_logits = 1
    scores, expected = whole.gradient(theta, batch, drawn(seed))
    terms = terms_of(whole.plain, theta, batch, seed)
    for engine in (packed, packed.plain, pieces):
        again, gradient = engine.gradient(theta, batch, drawn(seed))
        np.testing.assert_allclose(again.log_probs, scores.log_probs, rtol=TOLERANCE, atol=TOLERANCE)
        assert_close_to_terms(gradient, expected, terms)


def test_inside_inference_mode_or_without_gradients_it_is_the_same():
    engine = make_fast()
    theta = some_theta(engine)
    _, expected = engine.gradient(theta, BATCH, drawn(1))
    for mode in (torch.inference_mode(), torch.no_grad()):
        with mode:
            assert bits(engine.gradient(theta, BATCH, drawn(1))[1]) == bits(expected)


def test_scores_are_those_of_score_and_stay_the_same_bits():
    for scope in SCOPES:
        engine = make_fast(scope=scope)
        theta, probes = some_theta(engine), [AT_THETA, Probe(1, 1e-2)]
        before = engine.score(theta, probes, BATCH).log_probs
        scores, _ = engine.gradient(theta, BATCH, drawn(1))
        np.testing.assert_allclose(scores.log_probs, before[:1], rtol=TOLERANCE)
        assert engine.score(theta, probes, BATCH).log_probs.tobytes() == before.tobytes()


@pytest.mark.parametrize("scope", SCOPES)
def test_the_base_model_gets_no_gradients_and_is_left_as_it_was(scope):
    model = make_model("llama")
    frozen = next(model.parameters()).requires_grad_(False)
    ids = torch.tensor([[2, 9, 30]])
    before = model(ids).logits
    engine = TorchEngine(model, make_spec("llama", scope), PrefixCache(1e8))

    def fails(scores: Scores) -> np.ndarray:
        raise ArithmeticError

    engine.gradient(some_theta(engine), BATCH, drawn(1))
    with pytest.raises(ArithmeticError):
        engine.gradient(some_theta(engine), BATCH, fails)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [p for p in model.parameters() if not p.requires_grad] == [frozen]
    engine.close()
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scope", SCOPES)
def test_half_precision_models_have_nearly_the_gradient_of_fp32(scope, dtype):
    spec = make_spec("llama", scope)
    engine = TorchEngine(make_model("llama").to(dtype), spec, PrefixCache(1e8))
    theta = some_theta(engine)
    _, expected = PlainEngine(make_model("llama"), spec).gradient(theta, BATCH, cotangents(BATCH))
    _, gradient = engine.gradient(theta, BATCH, cotangents(BATCH))
    assert {value.dtype for value in gradient.values()} == {np.dtype(np.float32)}
    error = np.linalg.norm(flat(gradient) - flat(expected)) / np.linalg.norm(flat(expected))
    assert error < (0.1 if dtype == torch.bfloat16 else 0.0125)  # a bit of bf16 is 2^-8, of fp16 2^-11
