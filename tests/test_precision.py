"""Half precision: when it is taken, what is float32 in it, and that runs go back to float32 where slopes fail."""

import copy
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import CONFIGS, TARGETS, make_model
from tests.test_fast_engine import INVOCATION, some_theta
from tests.tiny_models import tiny_model
from zotune import mezo_finetune
from zotune.adapter.spec import LoraSpec
from zotune.assemble import model as assembled
from zotune.config import machine, run
from zotune.config.reading import read_run_config
from zotune.config.run import Facts, default_dtype
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.precision import half_speedup
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.zo.objectives import cross_entropy
from zotune.zo.protocol import AT_THETA, Example, Probe

KINDS = ("opt", "llama", "gpt2")
BATCH = [
    Example(tuple(range(30 * n, 34 * n)), INVOCATION, ((60,), (61,)), n % 2) for n in range(1, 7)
]  # prompts of 4 to 24 tokens
LONG_WORDS = [replace(example, candidates=((60,), (61, 62))) for example in BATCH]


def engine_of(kind: str, dtype: torch.dtype = torch.float32, block: int = 8) -> TorchEngine:
    spec = LoraSpec(4, 8.0, TARGETS[kind], INVOCATION)
    model: Any = make_model(kind)
    engine = TorchEngine(model.to(dtype), spec, PrefixCache(1e9, block))
    assert engine.plain_reason is None
    return engine


# ---- which precision -------------------------------------------------------------------------------------------------


def facts(device: str = "cpu", num_parameters: int = 200_000_000, half_speedup: float | None = 2.0) -> Facts:
    return Facts(num_parameters, 512, None, device, None, 1, half_speedup)


@pytest.mark.parametrize(
    ("known", "dtype"),
    [
        (facts(), "bfloat16"),
        (facts(half_speedup=1.2), "float32"),
        (facts(half_speedup=None), "float32"),
        (facts(num_parameters=5_000_000), "float32"),
        (facts("cuda:0", 5_000_000, None), "bfloat16"),
    ],
)
def test_the_default_precision(known, dtype):
    assert default_dtype(known)[0] == dtype


def test_the_speed_of_a_product_is_measured_in_a_moment():
    assert 0.01 < half_speedup() < 1000


def test_threads_leave_busy_cores_alone(monkeypatch):
    free, cores = machine.free_cores()
    assert 1 <= free <= cores
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(assembled, "free_cores", lambda: (2, 4))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert assembled._choose_threads("cpu") == 2
    assert assembled._choose_threads("cuda:0") == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert assembled._choose_threads("cpu") == 4


@pytest.mark.parametrize(("epsilon", "dtype"), [(1e-5, "float32"), (0.3, "bfloat16")])
@pytest.mark.slow
def test_a_run_whose_slopes_do_not_hold_goes_back_to_float32(
    opt_dir, reviews_file, tmp_path, monkeypatch, caplog, epsilon, dtype
):
    caplog.set_level(logging.INFO, "zotune")
    monkeypatch.setattr(run, "SMALL_MODEL", 0)
    monkeypatch.setattr(assembled, "SMALL_MODEL", 0)
    monkeypatch.setattr(assembled, "half_speedup", lambda: 3.0)
    mezo_finetune(
        str(opt_dir), str(reviews_file), labels=("terrible", "great"), invocation=" It was", num_steps=2, batch_size=3,
        directions=2, num_threads=1, epsilon=epsilon, output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    assert read_run_config(tmp_path / "run" / "config.toml").dtype == dtype
    assert ("float32 instead of bfloat16" in caplog.text) == (dtype == "float32")
    assert "its products are 3.0 times as fast here" in caplog.text


# ---- what is float32 in half precision -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_float_stream_comes_closer_to_float32(kind, monkeypatch):
    """The measure is the same weights with products in float32; in many layers, where rounding adds up."""
    deep = CONFIGS[kind]()
    deep.num_hidden_layers = 12
    monkeypatch.setitem(CONFIGS, kind, lambda: deep)
    engine = engine_of(kind, torch.bfloat16)
    assert engine.passes.stream.possible
    theta, probes = some_theta(engine), [AT_THETA, Probe(1, 0.05)]
    found = {}
    for stream in (True, False):
        engine.passes.stream.possible, engine.cache = stream, PrefixCache(1e9, 8)
        found[stream] = engine.score(theta, probes, LONG_WORDS).log_probs
    inside = engine.in_float32()
    assert inside is not None
    with inside:
        exact = engine.score(theta, probes, LONG_WORDS).log_probs
    errors = {stream: float(np.sqrt(np.mean((scores - exact) ** 2))) for stream, scores in found.items()}
    assert 0 < errors[True] < 0.9 * errors[False]
    engine.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in engine.model.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_of_one_token_need_no_normalizer(kind):
    engine = engine_of(kind)
    theta, probes = some_theta(engine), [AT_THETA, Probe(1, 0.05), Probe(1, -0.05)]
    whole = engine.score(theta, probes, BATCH)
    relative = engine.score(theta, probes, BATCH, normalized=False)
    np.testing.assert_allclose(np.diff(relative.log_probs), np.diff(whole.log_probs), atol=1e-5)
    assert not np.allclose(relative.log_probs, whole.log_probs, atol=1e-2)
    np.testing.assert_allclose(cross_entropy.losses(relative, BATCH), cross_entropy.losses(whole, BATCH), atol=1e-5)
    # A normalizer behind the first token is not the same for all candidates.
    longer = [engine.score(theta, probes, LONG_WORDS, normalized).log_probs for normalized in (True, False)]
    assert np.array_equal(longer[0], longer[1])


@pytest.mark.parametrize("normalized", [True, False])
def test_logits_of_half_precision_are_not_rounded(normalized):
    engine = engine_of("llama", torch.bfloat16)
    found: list[torch.Tensor] = []
    hook = engine.model.get_output_embeddings().register_forward_pre_hook(lambda _, args: found.append(args[0]))
    engine.head.remove()  # ours would come first, and leave nothing
    engine.head._hooks = [engine.model.get_output_embeddings().register_forward_pre_hook(engine.head._pick)]
    scores = engine.score(some_theta(engine), [AT_THETA], BATCH[:1], normalized).log_probs[0, 0]
    hook.remove()
    state = found[-1][0, len(INVOCATION) - 1].double().detach()
    logits = engine.model.get_output_embeddings().weight.detach().double() @ state
    expected = logits.log_softmax(-1) if normalized else logits
    np.testing.assert_allclose(scores, expected[[60, 61]].float().numpy(), atol=1e-5)


# ---- prompts in company ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_has_the_same_bits_in_every_company(kind, dtype):
    engine = engine_of(kind, dtype)
    prompts = [example.prompt for example in BATCH]
    together = [torch.cat(runs, dim=3) for runs in engine.activated.prompts.kv(prompts)]
    assert engine.activated.prompts.same_in_company
    for order in (prompts[::-1], prompts[2:4], prompts[3:4]):
        engine.cache = PrefixCache(1e9, 8)
        for prompt, runs in zip(order, engine.activated.prompts.kv(order), strict=True):
            assert torch.equal(torch.cat(runs, dim=3), together[prompts.index(prompt)])
    engine.activated.prompts.same_in_company, engine.cache = False, PrefixCache(1e9, 8)
    for alone, kv in zip(engine.activated.prompts.kv(prompts), together, strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 0.1
        torch.testing.assert_close(torch.cat(alone, dim=3), kv, rtol=tolerance, atol=tolerance)


def test_where_company_moves_bits_pieces_go_alone(caplog):
    caplog.set_level(logging.INFO, "zotune")
    engine = engine_of("llama")
    prompts = engine.activated.prompts
    passes = prompts._pass

    def noisy(pieces, length, at_end=False):  # bits that depend on where a piece lies
        return [kv + 1e-7 * length * at_end for kv in passes(pieces, length, at_end)]

    prompts._pass = noisy  # type: ignore[method-assign]
    before = copy.copy(engine.stats)
    prompts.kv([example.prompt for example in BATCH])
    assert prompts.same_in_company is False
    assert "prompts are computed one at a time" in caplog.text
    pieces = sum(-(-len(example.prompt) // 8) for example in BATCH)
    assert engine.stats.forward_passes - before.forward_passes == pieces


def test_mixtures_of_experts_go_alone():
    engine = TorchEngine(tiny_model("mixtral"), LoraSpec(2, 4.0, ("q_proj",), INVOCATION), PrefixCache(1e9, 8))
    assert engine.plain_reason is None
    engine.activated.prompts.kv([(3, 4, 5), (6, 7)])
    assert engine.activated.prompts.same_in_company is False
