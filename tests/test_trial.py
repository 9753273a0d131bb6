"""What the trial at the start finds out, and what is done about it."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from tests.architectures import BATCH, INVOCATION, TOLERANCE, reference
from tests.conftest import make_model
from tests.tiny_models import WINDOW, tiny_model
from zotune.adapter.spec import LoraSpec
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.limits import length_limit
from zotune.engine.torch.plain import PlainEngine
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.errors import InputError
from zotune.zo.protocol import AT_THETA, Example, Probe, Sampling

ACTIVATED = LoraSpec(2, 4.0, ("q_proj",), INVOCATION)


@pytest.mark.parametrize(
    ("kind", "settings", "limit"),
    [
        ("llama", {}, None),
        ("mistral", {"sliding_window": 70}, 70),
        ("mistral", {"sliding_window": None}, None),
        ("gpt_neo", {"window_size": 30}, 30),
        ("llama4_text", {"attention_chunk_size": 50}, 50),
        ("deepseek_v32", {"index_topk": 60}, 60),
        ("mixtral", {"num_experts_per_tok": 2}, None),
        ("longcat_flash", {"moe_topk": 3}, None),
        ("qwen2", {"use_sliding_window": False, "max_window_layers": 3}, None),
    ],
)
def test_limits_of_length_are_read_off_the_configuration(kind, settings, limit):
    assert length_limit(AutoConfig.for_model(kind, **settings)) == limit


def test_the_first_context_of_longrope_is_a_limit():
    assert length_limit(tiny_model("phi3").config) == WINDOW


def test_an_encoder_is_refused():
    from transformers import BertConfig, BertLMHeadModel

    model = BertLMHeadModel(
        BertConfig(vocab_size=320, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    )
    with pytest.raises(InputError, match="BertLMHeadModel lets tokens see later ones"):
        PlainEngine(model, LoraSpec(2, 4.0, ("query",)))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_looks_ahead_a_little_is_refused_in_any_precision(dtype):
    model: Any = tiny_model("cpmant")
    with pytest.raises(InputError, match="lets tokens see later ones"):
        PlainEngine(model.to(dtype), LoraSpec(2, 4.0, ("all-linear",)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_with_a_cap_is_not_taken_for_attention_in_any_precision(dtype):
    model = tiny_model("gemma2").to(dtype)
    engine = TorchEngine(model, ACTIVATED, PrefixCache(1e9))
    assert "softcap" in (engine.plain_reason or "")


def test_only_the_examples_past_the_window_go_without_reuse():
    engine = TorchEngine(tiny_model("mistral"), ACTIVATED, PrefixCache(1e9))
    zero = {name: np.zeros(shape, np.float32) for name, shape in engine.tensor_shapes.items()}
    fitting = [len(e.prompt + e.invocation) + max(map(len, e.candidates)) <= WINDOW for e in BATCH]
    assert 0 < sum(fitting) < len(BATCH)
    scores = engine.score(zero, [AT_THETA, Probe(1, 0.0)], BATCH).log_probs
    assert engine.stats.tokens_reused > 0
    np.testing.assert_allclose(scores[0], reference(tiny_model("mistral"), BATCH), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=1e-5)


def test_a_batch_on_both_sides_of_a_window_has_its_derivatives_too():
    engine = TorchEngine(tiny_model("mistral"), LoraSpec(2, 4.0, ("q_proj",)))
    theta = engine.layers.trial()[0]
    probes = [Probe(3, 0.0, derivative=True)]
    fast, plain = (each.score(theta, probes, BATCH).tangents for each in (engine, engine.plain))
    assert fast is not None
    assert plain is not None
    np.testing.assert_allclose(fast, plain, rtol=1e-3, atol=1e-4)


def test_tokens_that_see_later_ones_in_long_sequences_name_the_longest_that_do_not():
    engine = TorchEngine(tiny_model("doge"), LoraSpec(2, 4.0, ("q_proj",)))
    theta = engine.layers.trial()[0]
    engine.score(theta, [AT_THETA], BATCH[2:])
    with pytest.raises(InputError, match=f"--max-length: .*more than {WINDOW} tokens"):
        engine.score(theta, [AT_THETA], BATCH)


def test_generation_without_stop_tokens_does_not_stop_at_the_models_own():
    model = make_model("llama")
    engine = PlainEngine(model, LoraSpec(2, 4.0, ("q_proj",)))
    theta = engine.layers.trial()[0]
    ((tokens,),) = engine.generate(theta, [AT_THETA], [Example((5, 6), (7,), ((8,),))], Sampling(6))
    model.generation_config.eos_token_id = tokens[1]
    assert engine.generate(theta, [AT_THETA], [Example((5, 6), (7,), ((8,),))], Sampling(6)) == [[tokens]]


def test_rows_that_are_computed_whole_go_on_as_with_a_cache():
    engine = PlainEngine(make_model("llama"), LoraSpec(2, 4.0, ("q_proj", "v_proj"), INVOCATION))
    theta, probes = engine.layers.trial()
    kept = engine.generate(theta, probes, BATCH[2:], Sampling(5))
    engine._generates_whole_rows = True
    computed = engine.stats.tokens_computed
    assert engine.generate(theta, probes, BATCH[2:], Sampling(5)) == kept
    lengths = [len(e.prompt + e.invocation) for e in BATCH[2:]]
    assert engine.stats.tokens_computed - computed == len(probes) * sum(5 * length + 10 for length in lengths)


@pytest.mark.parametrize("seed", range(4))
def test_a_model_that_never_says_the_same_twice_is_refused(seed):
    model = tiny_model("reformer")
    torch.manual_seed(seed)  # it draws at every pass, and now and then the same twice
    with pytest.raises(InputError, match="scores the same text differently each time"):
        PlainEngine(model, LoraSpec(2, 4.0, ("all-linear",)))


@pytest.mark.parametrize("kind", ["llama", "mpt", "recurrent_gemma", "pegasus"])
@pytest.mark.parametrize("scope", ["everywhere", "activated"])
def test_the_trial_finds_in_half_precision_what_it_finds_in_float32(kind, scope):
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model: Any = tiny_model(kind)
        model.to(dtype)
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        engine = TorchEngine(model, LoraSpec(2, 4.0, ("all-linear",), INVOCATION if scope == "activated" else None))
        found.append((engine.plain_reason is None, engine.plain.alone))
        engine.close()
        assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
        assert not any("forward" in vars(module) for module in model.modules())
    assert found[0] == found[1]
