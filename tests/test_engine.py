"""Both torch engines against PEFT and transformers' own forward pass: one row, no padding, full logits."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel

from tests.conftest import CONTEXT, TARGETS, VOCABULARY, make_model
from zotune.adapter.forms import initial_theta
from zotune.adapter.peft_files import load_adapter, save_adapter
from zotune.adapter.spec import LoraSpec
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.plain import PlainEngine
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.errors import InputError
from zotune.zo.draws import gaussian
from zotune.zo.protocol import AT_THETA, Example, Probe, Sampling

INVOCATION = (50, 51)
# fp32 sums of up to 5 log-probabilities of size 10, in another order of operations
TOLERANCE = 1e-5

# Tokens 50 and 51 stand only in the invocation, so that PEFT finds it where it is.
tokens = st.integers(2, VOCABULARY - 1).filter(lambda token: token not in INVOCATION)


@st.composite
def examples(draw, max_candidate=5):
    prompt = draw(st.lists(tokens, min_size=1, max_size=20))
    count = draw(st.integers(1, 4))
    candidates = draw(
        st.lists(st.lists(tokens, min_size=1, max_size=max_candidate), min_size=count, max_size=count, unique_by=tuple)
    )
    return Example(tuple(prompt), INVOCATION, tuple(map(tuple, candidates)), 0)


def make_engine(kind: str, scope: str, **options) -> PlainEngine:
    spec = LoraSpec(4, 8.0, TARGETS[kind], INVOCATION if scope == "activated" else None)
    return PlainEngine(make_model(kind), spec, **options)


def some_theta(engine: PlainEngine | TorchEngine) -> dict[str, np.ndarray]:
    theta = initial_theta(engine.tensor_shapes, 3)
    return {name: value + np.float32(0.1) * gaussian(11, name, value.shape) for name, value in theta.items()}


ENGINES: dict[str, Any] = {
    "plain": PlainEngine,
    "torch": lambda model, spec: TorchEngine(model, spec, PrefixCache(1e8)),
}


@pytest.fixture(
    scope="module",
    params=[(e, kind, scope) for e in ENGINES for kind in TARGETS for scope in ("activated", "everywhere")],
    ids="-".join,
)
def pair(request, tmp_path_factory: pytest.TempPathFactory):
    """Each engine with an adapter, and the same adapter as PEFT loads it from the exported folder."""
    name, kind, scope = request.param
    spec = LoraSpec(4, 8.0, TARGETS[kind], INVOCATION if scope == "activated" else None)
    engine = ENGINES[name](make_model(kind), spec)
    theta = some_theta(engine)
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(folder, theta, engine.spec, "none")
    return engine, theta, PeftModel.from_pretrained(make_model(kind), folder).eval(), folder


@torch.no_grad()
def naive_log_prob(model: torch.nn.Module, example: Example, candidate: tuple[int, ...]) -> float:
    ids = example.prompt + example.invocation + candidate
    logits = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    first = len(ids) - len(candidate)
    return sum(float(logits[position - 1, ids[position]]) for position in range(first, len(ids)))


@settings(max_examples=15)
@given(batch=st.lists(examples(), min_size=1, max_size=4))
def test_scores_equal_peft_on_the_exported_adapter(pair, batch):
    engine, theta, reference, _ = pair
    scores = engine.score(theta, [AT_THETA], batch)
    for index, example in enumerate(batch):
        for c, candidate in enumerate(example.candidates):
            expected = naive_log_prob(reference, example, candidate)
            assert scores.log_probs[0, index, c] == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
            assert scores.num_tokens[index, c] == len(candidate)


def test_the_exported_adapter_reads_back_the_same_bits(pair):
    engine, theta, _, folder = pair
    loaded, spec = load_adapter(folder)
    assert spec == engine.spec
    assert {name: value.tobytes() for name, value in loaded.items()} == {n: v.tobytes() for n, v in theta.items()}


def test_generation_equals_peft_token_for_token(pair):
    engine, theta, reference, _ = pair
    prompts = [Example((1, 9, 30, 41, 7), INVOCATION, ((),)), Example((1, 12), INVOCATION, ((),))]
    (texts,) = engine.generate(theta, [AT_THETA], prompts, Sampling(max_new_tokens=8))
    for prompt, text in zip(prompts, texts, strict=True):
        ids = torch.tensor([prompt.prompt + prompt.invocation])
        expected = reference.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
        assert text == tuple(expected[0, ids.shape[1] :].tolist())


@settings(max_examples=15)
@given(batch=st.lists(examples(), min_size=1, max_size=5), budget=st.integers(1, 80), seeds=st.lists(st.integers(0, 9)))
@pytest.mark.parametrize("scope", ["activated", "everywhere"])
def test_neither_packing_nor_company_changes_a_score(scope, batch, budget, seeds):
    probes = [AT_THETA, *(Probe(seed, 1e-2) for seed in seeds[:3])]
    engine, small = make_engine("opt", scope), make_engine("opt", scope, max_tokens_per_forward=budget)
    theta = some_theta(engine)
    together = engine.score(theta, probes, batch)
    packed = small.score(theta, probes, batch)
    np.testing.assert_allclose(packed.log_probs, together.log_probs, rtol=TOLERANCE, atol=TOLERANCE)
    for index, example in enumerate(batch):
        alone = engine.score(theta, probes[-1:], [example]).log_probs[0, 0]
        here = together.log_probs[-1, index, : len(example.candidates)]
        np.testing.assert_allclose(alone, here, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_same_call_gives_the_same_bits():
    engine = make_engine("opt", "activated")
    theta, batch = some_theta(engine), [Example((1, 9, 30), INVOCATION, ((60,), (61, 62)), 0)]
    first = engine.score(theta, [Probe(1, 1e-2)], batch).log_probs
    engine.score(theta, [Probe(2, 1e-2)], batch)
    assert engine.score(theta, [Probe(1, 1e-2)], batch).log_probs.tobytes() == first.tobytes()


def test_an_activated_adapter_leaves_the_prompt_to_the_base_model():
    """With no invocation tokens to act on, an adapter of any size changes nothing before them."""
    engine = make_engine("opt", "activated")
    theta = some_theta(engine)
    other = {name: 5 * value for name, value in theta.items()}
    batch = [Example((1, 9, 30, 41), (), ((60,),), 0)]  # nothing after the prompt is an input
    same = engine.score(theta, [AT_THETA], batch).log_probs
    assert np.array_equal(same, engine.score(other, [AT_THETA], batch).log_probs)
    batch = [Example((1, 9, 30, 41), INVOCATION, ((60,),), 0)]
    changed = engine.score(theta, [AT_THETA], batch).log_probs
    assert not np.allclose(changed, engine.score(other, [AT_THETA], batch).log_probs, atol=1e-3)


def test_counters_equal_tokens_counted_by_hand():
    engine = make_engine("opt", "everywhere")
    theta = some_theta(engine)
    batch = [
        Example((1, 2, 3), INVOCATION, ((60,), (61,)), 0),  # one shared row of 3 + 2 tokens
        Example((1,), INVOCATION, ((60, 61), (61,), (62, 63)), 0),  # rows: 3 + [60], 3 + [], 3 + [62]
    ]
    engine.score(theta, [Probe(1, 1e-2), Probe(1, -1e-2)], batch)
    assert engine.stats.forward_passes == 2
    assert engine.stats.tokens_computed == 2 * (5 + 4 + 3 + 4)
    assert engine.stats.tokens_reused == 0


def test_candidates_differing_in_number_are_filled_with_minus_infinity():
    engine = make_engine("opt", "everywhere")
    batch = [Example((1,), (), ((60,), (61,), (62,)), 0), Example((1,), (), ((60,),), 0)]
    scores = engine.score(some_theta(engine), [AT_THETA], batch)
    assert scores.log_probs[0, 1].tolist()[1:] == [-np.inf, -np.inf]
    assert scores.num_tokens.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_prompt_as_long_as_the_context_is_scored():
    engine = make_engine("opt", "activated")
    example = Example(tuple(range(60, 60 + CONTEXT - 2)), INVOCATION, ((60,), (61,)), 0)
    scores = engine.score(some_theta(engine), [AT_THETA], [example])
    assert np.isfinite(scores.log_probs).all()


@pytest.mark.slow
def test_peak_memory_is_this_process_alone(tmp_path):
    """A child of a large process reports its own peak, and the peak stays after what made it is gone."""
    ballast = np.ones(400_000_000, dtype=np.uint8)
    code = (
        "import numpy as np; from tests.test_engine import make_engine; engine = make_engine('opt', 'everywhere');"
        "before = engine.peak_memory_bytes(); np.ones(200_000_000, dtype=np.uint8).sum();"
        "print(before, engine.peak_memory_bytes())"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    before, after = map(int, result.stdout.split())
    own = make_engine("opt", "everywhere").peak_memory_bytes()
    assert ballast.nbytes < own
    assert 50e6 < after - before <= 250e6
    assert before < own


def test_close_leaves_the_model_as_it_was():
    model = make_model("opt")
    ids = torch.tensor([[1, 9, 30]])
    before = model(ids).logits
    engine = PlainEngine(model, LoraSpec(4, 8.0, ("q_proj", "fc1"), None))
    engine.score(some_theta(engine), [AT_THETA], [Example((1,), (), ((2,),), 0)])
    engine.close()
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_score_close_to_fp32(dtype):
    spec = LoraSpec(4, 8.0, ("q_proj", "v_proj"), INVOCATION)
    full, half = PlainEngine(make_model("opt"), spec), PlainEngine(make_model("opt").to(dtype), spec)
    theta, batch = some_theta(full), [Example((1, 9, 30), INVOCATION, ((60,), (61, 62)), 0)]
    scores = half.score(theta, [AT_THETA], batch).log_probs
    assert scores.dtype == np.float32
    # Logits of size 3 carry 8 (bf16) or 11 (fp16) bits.
    np.testing.assert_allclose(scores, full.score(theta, [AT_THETA], batch).log_probs, rtol=0.03)


@pytest.mark.parametrize("scope", ["activated", "everywhere"])
def test_all_linear_scores_equal_a_forward_pass_with_the_products_merged_into_the_weights(scope):
    """OPT flattens its rows before the feed-forward layers; PEFT's aLoRA cannot adapt those, so merge by hand."""
    engine = PlainEngine(make_model("opt"), LoraSpec(2, 4.0, ("all-linear",), () if scope == "activated" else None))
    theta = some_theta(engine)
    merged = make_model("opt")
    for name, module in merged.named_modules():
        key = f"base_model.model.{name}.lora_A.weight"
        if key in theta:
            module.weight.data += 2.0 * torch.from_numpy(theta[key.replace("lora_A", "lora_B")] @ theta[key])
    whole = Example((), (1, 9, 30, 41), ((60, 61),), 0)  # all is invocation: both scopes act everywhere
    other = Example((), (1, 9), ((60,), (61, 62, 63)), 0)
    scores = engine.score(theta, [AT_THETA], [whole, other]).log_probs[0]
    for index, example in enumerate((whole, other)):
        for c, candidate in enumerate(example.candidates):
            assert scores[index, c] == pytest.approx(naive_log_prob(merged, example, candidate), rel=TOLERANCE)


def test_all_linear_adapts_every_linear_module_but_the_head():
    engine = PlainEngine(make_model("opt"), LoraSpec(2, 4.0, ("all-linear",), None))
    modules = {name.split(".lora_")[0].rpartition(".")[2] for name in engine.tensor_shapes}
    assert modules == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}


def test_a_target_that_matches_nothing_is_refused_with_what_exists():
    with pytest.raises(InputError, match=r"'query' matches no linear module .* fc1, fc2, k_proj, .* q_proj, v_proj"):
        PlainEngine(make_model("opt"), LoraSpec(2, 4.0, ("query",), None))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("adapter_model.safetensors", b"\x08\0\0\0\0\0\0\0{", "damaged"),
        ("adapter_model.safetensors", None, "it has no adapter_model.safetensors"),
        ("adapter_config.json", None, "it has no adapter_config.json"),
        ("adapter_config.json", b"[]", "no settings"),
        ("adapter_config.json", b"\xff\xfe", "damaged"),
        ("adapter_config.json", b'{"peft_type": "LORA"}', "has no target_modules"),
        ("adapter_config.json", b'{"peft_type": "IA3"}', "peft_type 'IA3'"),
        ("adapter_config.json", b'{"peft_type": "LORA", "use_dora": true}', "has use_dora True"),
    ],
)
def test_damaged_and_unsupported_adapters_are_refused(tmp_path: Path, name, content, message):
    engine = make_engine("opt", "everywhere")
    assert engine.spec
    save_adapter(tmp_path, some_theta(engine), engine.spec, "none")
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_adapter(tmp_path)
