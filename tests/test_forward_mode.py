"""Forward-mode derivatives against autograd, finite differences and each other; runs with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import TARGETS, make_model
from tests.processes import run_to_end
from tests.test_estimators import BATCH, double_loss
from tests.test_fast_engine import batches, some_theta
from tests.test_train import StopAt
from zotune import InputError, mezo_finetune, resume
from zotune.adapter.forms import lora_matrices
from zotune.adapter.spec import LoraSpec
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.plain import PlainEngine
from zotune.engine.torch.prefix_cache import NoPrefixCache, PrefixCache
from zotune.zo.draws import gaussian
from zotune.zo.estimators import Jvp, Spsa
from zotune.zo.objectives import cross_entropy, token_nll
from zotune.zo.protocol import Example, Probe, Scores

INVOCATION = (50, 51)
SEEDS = (4, 5, 6)
SCOPES = {"activated": INVOCATION, "everywhere": None}
ENGINES: dict[str, Any] = {
    "plain": PlainEngine,
    "torch": lambda model, spec: TorchEngine(model, spec, PrefixCache(1e8)),
    "torch in small passes": lambda model, spec: TorchEngine(model, spec, NoPrefixCache(), max_tokens_per_forward=12),
}


def jvp_slopes(engine, theta, batch, seeds=SEEDS):
    probes = Jvp().ask(seeds)
    slopes = Jvp().tell(probes, cross_entropy.derivatives(engine.score(theta, probes, batch), batch))
    return np.array([slope.value for slope in slopes])


def exact_slopes(model, spec, theta, seeds=SEEDS):
    """Autograd's, of a float64 model with LoRA written out (Llama's norms are float32 even there).

    LoRA's matrices are linear in theta, so that their differences are their derivatives, but for rounding.
    """
    at_theta = lora_matrices(theta, spec)
    tensors = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in at_theta.items()}
    double_loss(model, spec, tensors, BATCH).backward()
    slopes = []
    for seed in seeds:
        above, below = (lora_matrices(Probe(seed, distance).of(theta), spec) for distance in (1.0, -1.0))
        slopes.append(
            sum(
                float((tensor.grad.numpy() * (above[name].astype(np.float64) - below[name]) / 2).sum())
                for name, tensor in tensors.items()
                if tensor.grad is not None  # the last layer's queries of prompts reach no score
            )
        )
    return np.array(slopes)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_slopes_equal_autograds_directional_derivatives(make, scope, kind):
    spec = LoraSpec(4, 8.0, TARGETS[kind], SCOPES[scope])
    engine = make(make_model(kind), spec)
    theta = some_theta(engine)
    assert getattr(engine, "plain_reason", None) is None
    exact = exact_slopes(make_model(kind), spec, theta)
    np.testing.assert_allclose(jvp_slopes(engine, theta, BATCH), exact, rtol=1e-5)


@pytest.mark.parametrize("peft_type", ["lora_fa", "vera"])
def test_slopes_of_other_forms_equal_autograds(peft_type):
    engine = ENGINES["torch"](make_model("opt"), LoraSpec(4, 8.0, TARGETS["opt"], INVOCATION, peft_type=peft_type))
    theta = some_theta(engine)
    exact = exact_slopes(make_model("opt"), engine.spec, theta)
    np.testing.assert_allclose(jvp_slopes(engine, theta, BATCH), exact, rtol=1e-5)


@settings(max_examples=10)
@given(batch=batches(), seeds=st.lists(st.integers(0, 99), min_size=1, max_size=5))
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.slow
def test_scores_and_tangents_of_any_batch_equal_the_plain_engines(fast_and_plain, scope, batch, seeds):
    fast, plain, theta = fast_and_plain[scope]
    probes = Jvp().ask(seeds)
    scores, expected = (engine.score(theta, probes, batch) for engine in (fast, plain))
    # Sums of up to 5 numbers of size 10, and derivatives of size 50, in another order of operations.
    np.testing.assert_allclose(scores.log_probs, expected.log_probs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores.tangents, expected.tangents, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def fast_and_plain():
    engines = {}
    for scope, invocation in SCOPES.items():
        spec = LoraSpec(4, 8.0, TARGETS["opt"], invocation)
        fast = TorchEngine(make_model("opt"), spec, PrefixCache(1e6), max_tokens_per_forward=100)
        engines[scope] = fast, PlainEngine(make_model("opt"), spec), some_theta(fast)
    return engines


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.slow
def test_in_bfloat16_the_error_is_smaller_than_spsas_at_every_epsilon(kind, scope):
    """Root of the mean square over 16 directions, against autograd in float64 on the same rounded weights."""
    spec, seeds = LoraSpec(4, 8.0, TARGETS[kind], SCOPES[scope]), range(16)
    model = make_model(kind).bfloat16()
    engine = ENGINES["torch"](model, spec)
    # At some points a unit of OPT's ReLU is so near 0 that rounding turns it on or off, and its derivative with it.
    theta = {
        name: value + np.float32(0.1) * gaussian(100, name, value.shape) for name, value in some_theta(engine).items()
    }
    rounded = make_model(kind)
    rounded.load_state_dict({name: value.bfloat16() for name, value in rounded.state_dict().items()})
    exact = exact_slopes(rounded, spec, theta, seeds)
    error = np.linalg.norm(jvp_slopes(engine, theta, BATCH, seeds) - exact)
    for epsilon in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1):
        probes = Spsa(epsilon).ask(seeds)
        slopes = Spsa(epsilon).tell(probes, cross_entropy.losses(engine.score(theta, probes, BATCH), BATCH))
        assert error < np.linalg.norm([slope.value for slope in slopes] - exact)


@pytest.mark.parametrize("objective", [cross_entropy, token_nll])
def test_an_objectives_derivative_equals_finite_differences(objective):
    rng, eps = np.random.default_rng(0), 1e-3
    log_probs, tangents = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    num_tokens = rng.integers(1, 4, size=(4, 5))
    log_probs[:, 1, 3:], tangents[:, 1, 3:], num_tokens[1, 3:] = -np.inf, 0.0, 0
    batch = [Example((1,), (), ((2,),) * 5, label) for label in (0, 2, 4, 1)]

    def loss(distance):
        moved = (log_probs.astype(np.float64) + distance * tangents).astype(np.float64)
        return objective.losses(Scores(moved, num_tokens), batch)

    differences = (loss(eps) - loss(-eps)) / (2 * eps)
    derivative = objective.derivatives(Scores(log_probs, num_tokens, tangents), batch)
    np.testing.assert_allclose(derivative, differences, rtol=1e-5, atol=1e-6)  # an error of eps^2


def test_a_pass_counts_one_forward_and_the_tokens_of_values_and_tangents():
    engine = ENGINES["torch"](make_model("opt"), LoraSpec(4, 8.0, TARGETS["opt"], INVOCATION))
    theta = some_theta(engine)
    engine.score(theta, Jvp().ask(SEEDS), BATCH)  # prompts of 5 and 3 tokens, suffixes of 2
    assert (engine.stats.forward_passes, engine.stats.tokens_computed) == (2, 5 + 3 + (1 + 3) * (2 + 2))
    engine.score(theta, Jvp().ask(SEEDS), BATCH)
    assert (engine.stats.forward_passes, engine.stats.tokens_computed) == (3, 5 + 3 + 2 * (1 + 3) * (2 + 2))
    assert engine.stats.tokens_reused + engine.stats.tokens_computed == 2 * (1 + 3) * (5 + 2 + 3 + 2)


def test_scores_of_points_are_the_same_bits_before_and_after_derivatives():
    engine = ENGINES["torch"](make_model("opt"), LoraSpec(4, 8.0, TARGETS["opt"], INVOCATION))
    theta, probes = some_theta(engine), [Probe(1, 1e-2), Probe(1, -1e-2)]
    before = engine.score(theta, probes, BATCH).log_probs.tobytes()
    engine.score(theta, Jvp().ask(SEEDS), BATCH)
    assert engine.score(theta, probes, BATCH).log_probs.tobytes() == before


# ---- runs


@pytest.fixture(scope="module")
def run_options(opt_dir: Path, reviews_file: Path) -> dict:
    return {
        "model": str(opt_dir), "train_data": str(reviews_file), "labels": ("terrible", "great"),
        "invocation": " It was", "estimator": "jvp", "num_steps": 8, "batch_size": 3, "directions": 3,
        "eval_steps": 4, "learning_rate": 0.05, "num_threads": 1,
    }  # fmt: skip


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.slow
def test_a_run_resumes_to_the_same_bits(run_options, tmp_path, scope):
    options = {**run_options, "scope": scope}
    mezo_finetune(**options, output_dir=str(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        mezo_finetune(**options, output_dir=str(tmp_path / "stopped"), callbacks=[StopAt(5)])
    resume(tmp_path / "stopped")
    for name in ("journal.jsonl", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_the_command_trains_with_it(run_options, tmp_path):
    flags = [
        part
        for name, value in run_options.items()
        for part in ([f"--{name.replace('_', '-')}", *(value if isinstance(value, tuple) else (str(value),))])
    ]
    result = run_to_end("train", *flags, "--output-dir", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    mezo_finetune(**run_options, output_dir=str(tmp_path / "again"))
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == (tmp_path / "again" / "journal.jsonl").read_bytes()


def test_epsilon_is_refused(run_options, tmp_path):
    with pytest.raises(InputError, match="--epsilon has no effect with --estimator jvp"):
        mezo_finetune(**run_options, epsilon=1e-3, output_dir=str(tmp_path / "run"))


class _Detached(torch.autograd.Function):
    """An operation without a forward-mode rule, as a custom kernel is."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()


def test_a_model_without_rules_is_refused_before_training(run_options, tmp_path):
    from transformers import AutoTokenizer

    model = make_model("opt")
    layer = model.get_submodule("model.decoder.layers.1.fc1")
    layer.register_forward_hook(lambda module, args, output: _Detached.apply(output))
    options = {name: value for name, value in run_options.items() if name != "model"}
    with pytest.raises(InputError, match="--estimator jvp: OPTForCausalLM does not compute derivatives in forward"):
        mezo_finetune(
            model, **options, tokenizer=AutoTokenizer.from_pretrained(run_options["model"]),
            output_dir=str(tmp_path / "run"),
        )  # fmt: skip
    assert not (tmp_path / "run").exists()
