"""The SGLang engine against the plain one, with the real package. Where it is not installed, that is skipped."""

import importlib.util
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, OPTConfig, Qwen2Config, Qwen3Config

from tests.conftest import CONTEXT, SHARED, VOCABULARY, make_model
from zotune.adapter.forms import initial_theta
from zotune.adapter.spec import LoraSpec
from zotune.cli import main, parse
from zotune.engine.kind import EngineRequest
from zotune.engine.sglang.engine import SglangEngine
from zotune.engine.sglang.kind import SglangKind
from zotune.engine.sglang.models import check_config
from zotune.engine.sglang.options import check_options
from zotune.engine.sglang.rows import common_prefix, plan_rows
from zotune.engine.torch.eva import principal_components
from zotune.engine.torch.lens_measuring import measure_lens
from zotune.engine.torch.plain import PlainEngine
from zotune.errors import InputError, NoLens
from zotune.zo.draws import gaussian
from zotune.zo.protocol import AT_THETA, Example, Probe, Sampling

pytestmark = pytest.mark.usefixtures("quick_start")
INSTALLED = importlib.util.find_spec("sglang") is not None
needs_sglang = pytest.mark.skipif(not INSTALLED, reason="SGLang is not installed (sh test.sh --all)")
INVOCATION = (50, 51)
TARGETS = {
    "opt": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
# fp32 sums of up to 4 log-probabilities of size 10 from another implementation of every layer
TOLERANCE = 1e-4
SHARED_START = tuple(range(100, 120))
BATCH = [
    Example((2, 3, 4, 5, 6), INVOCATION, ((60,), (61,)), 0),
    Example((2, 3, 4, 9), INVOCATION, ((60, 61), (60, 62), (63,), (70, 71, 72)), 0),
    Example((*SHARED_START, 7, 8), INVOCATION, ((60, 61, 62, 63),), 0),
    Example((*SHARED_START, 9), INVOCATION, ((60, 61), (9,)), 0),
    Example((5, 6), (), ((60,), (61, 62)), 0),  # an activated adapter does not act on what scores the first token
]
PROBES = [AT_THETA, Probe(1, 1e-2), Probe(1, -1e-2), Probe(2, 1e-2), Probe(3, 0.1)]  # more than there are slots


def some_theta(shapes):
    theta = initial_theta(shapes, 3)
    return {name: value + np.float32(0.1) * gaussian(11, name, value.shape) for name, value in theta.items()}


def make_spec(kind, scope):
    return LoraSpec(4, 8.0, TARGETS[kind], INVOCATION if scope == "activated" else None)


def assert_same_scores(engine, plain, theta, probes, batch):
    expected = plain.score(theta, probes, batch)
    scores = engine.score(theta, probes, batch)
    np.testing.assert_array_equal(scores.num_tokens, expected.num_tokens)
    np.testing.assert_allclose(scores.log_probs, expected.log_probs, rtol=TOLERANCE, atol=TOLERANCE)


# Kind, scope, ranks, tokens of KV: the first has room for hardly more than the longest example.
CASES = [
    ("opt", "activated", 1, 60),
    ("llama", "activated", 2, 400),
    ("opt", "everywhere", 2, 400),
    ("llama", "everywhere", 1, 400),
]


def case_name(case):
    return "-".join(map(str, case))


@pytest.fixture(scope="module", params=CASES, ids=case_name)
def pair(request, model_dirs):
    if not INSTALLED:
        pytest.skip("SGLang is not installed")
    kind, scope, num_ranks, num_tokens = request.param
    folder, spec = model_dirs[kind], make_spec(kind, scope)
    options = {"tp_size": num_ranks, "max_total_tokens": num_tokens}
    engine = SglangEngine(str(folder), AutoConfig.from_pretrained(folder), spec, num_probes=2, options=options)
    yield engine, PlainEngine(make_model(kind), spec)
    engine.close()


def test_scores_and_counts_equal_the_plain_engines_cold_and_warm(pair):
    engine, plain = pair
    assert engine.tensor_shapes == plain.tensor_shapes
    assert engine.spec == plain.spec
    theta = some_theta(plain.tensor_shapes)
    for _ in range(2):
        before = engine.stats.tokens_computed + engine.stats.tokens_reused
        needed = plain.stats.tokens_computed
        assert_same_scores(engine, plain, theta, PROBES, BATCH)
        needed = plain.stats.tokens_computed - needed
        assert engine.stats.tokens_computed + engine.stats.tokens_reused - before == needed
    assert engine.stats.tokens_computed == engine.counts.tokens_computed
    assert engine.stats.tokens_reused > 0


def test_another_theta_and_other_company_change_nothing_but_what_they_should(pair):
    engine, plain = pair
    for step in range(3):
        theta = {
            n: v + np.float32(0.3) * gaussian(step, n, v.shape) for n, v in some_theta(engine.tensor_shapes).items()
        }
        assert_same_scores(engine, plain, theta, [Probe(step, 0.1)], BATCH[step:])


def test_more_than_fits_is_evicted_and_computed_again(pair):
    engine, plain = pair
    theta = some_theta(plain.tensor_shapes)
    batch = [Example(tuple(range(60 + n, 110 + n)), INVOCATION, ((20,), (21, 22)), 0) for n in range(0, 200, 12)]
    assert sum(len(example.prompt) for example in batch) > 2 * engine.capacity
    for _ in range(2):
        assert_same_scores(engine, plain, theta, PROBES[:3], batch)


def test_a_starts_from_the_components_that_the_plain_engine_finds(pair):
    engine, plain = pair
    batch = [Example(tuple(range(60 + 7 * n, 68 + 8 * n)), INVOCATION, ((20 + n,),), 0) for n in range(8)]
    found, expected = engine.principal_components(batch, seed=0), principal_components(plain, batch, seed=0)
    assert found.tensors.keys() == expected.tensors.keys()
    for name, rows in expected.tensors.items():  # rows have either sign
        np.testing.assert_allclose(found.tensors[name].T @ found.tensors[name], rows.T @ rows, atol=2e-3)
    assert engine.stats.tokens_computed == engine.counts.tokens_computed == engine._ask("stats")[1].tokens_computed


# ---- texts

WRITERS = [AT_THETA, *(Probe(seed, sign * 0.05) for seed in (1, 2, 3) for sign in (1, -1))]  # for two slots
START = tuple(range(100, 117))  # what all prompts begin with, in scope everywhere computed once for each probe
OPEN = [Example((*START, *rest), INVOCATION, ((),)) for rest in ((7,), (1, 9, 30, 41, 7), (), (1, 12), (1, 12))]
STOP = tuple(range(0, VOCABULARY, 9))
SAMPLINGS = {
    "greedy": Sampling(8),
    "stopped": Sampling(10, stop_token_ids=STOP),
    "drawn": Sampling(10, temperature=1.0, seed=3, stop_token_ids=STOP),
    "nucleus": Sampling(6, temperature=0.8, top_p=0.9, seeds=(5, 6, 5, 7, 8)),
}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_texts_of_more_probes_than_slots_are_the_plain_engines(pair, sampling):
    """In the first case there is memory for hardly two of them at a time."""
    engine, plain = pair
    theta, before = some_theta(plain.tensor_shapes), engine.stats.tokens_computed + engine.stats.tokens_reused
    texts = engine.generate(theta, WRITERS, OPEN, sampling)
    assert texts == plain.generate(theta, WRITERS, OPEN, sampling)
    new = sum(min(len(text), sampling.max_new_tokens - 1) for of_probe in texts for text in of_probe)
    given = sum(len(example.prompt + example.invocation) for example in OPEN)
    needed = engine.stats.tokens_computed + engine.stats.tokens_reused - before
    assert needed == len(WRITERS) * given + new
    assert (len({len(text) for of_probe in texts for text in of_probe}) > 3) is bool(sampling.stop_token_ids)
    assert len({tuple(of_probe) for of_probe in texts}) > 3


@pytest.mark.parametrize("pair", CASES[:2], indirect=True, ids=case_name)
def test_a_text_depends_on_its_own_seed_and_not_on_what_is_written_beside_it(pair):
    engine, plain = pair
    theta, sampling = some_theta(plain.tensor_shapes), Sampling(8, temperature=1.0, seed=3)
    texts = engine.generate(theta, WRITERS, OPEN, sampling)
    assert [texts[-1]] == engine.generate(theta, WRITERS[-1:], OPEN, sampling)
    turned = engine.generate(theta, WRITERS[::-1], OPEN[::-1], sampling.of(range(4, -1, -1), 5))
    assert texts == [of_probe[::-1] for of_probe in turned[::-1]]
    assert texts[0][3] != texts[0][4]  # the same prompt
    assert texts != engine.generate(theta, WRITERS, OPEN, Sampling(8, temperature=1.0, seed=4))


@pytest.mark.parametrize("pair", CASES[3:], indirect=True, ids=case_name)
def test_a_slot_does_not_wait_for_the_longest_text_of_the_others(pair):
    engine, plain = pair
    theta, sampling = some_theta(plain.tensor_shapes), Sampling(40, 1.0, stop_token_ids=tuple(range(0, VOCABULARY, 20)))
    probes = [Probe(seed, 1.0) for seed in range(12)]
    passes = [engine.stats.forward_passes]
    texts = engine.generate(theta, probes, OPEN[:1], sampling)
    passes.append(engine.stats.forward_passes)
    pairs = [engine.generate(theta, probes[first : first + 2], OPEN[:1], sampling) for first in range(0, 12, 2)]
    passes.append(engine.stats.forward_passes)
    assert texts == [of_probe for some in pairs for of_probe in some]
    most = sum(max(len(some[0][0]), len(some[1][0])) for some in pairs)
    assert passes[1] - passes[0] < most <= passes[2] - passes[1]


@pytest.mark.parametrize("pair", CASES[:1], indirect=True, ids=case_name)
def test_a_text_whose_memory_is_needed_goes_on_later_where_it_was(pair):
    engine, plain = pair
    theta, prompts, sampling = some_theta(plain.tensor_shapes), [Example((5, 6), INVOCATION, ((),))] * 3, Sampling(30)
    before = engine.counts.retractions
    texts = engine.generate(theta, WRITERS, prompts, sampling)
    assert engine.counts.retractions > before
    assert texts == plain.generate(theta, WRITERS, prompts, sampling)


@needs_sglang
def test_the_bare_model_scores_and_writes_as_in_the_plain_engine(model_dirs):
    spec, folder = replace(make_spec("opt", "activated"), target_modules=()), model_dirs["opt"]
    config = AutoConfig.from_pretrained(folder)
    engine = SglangEngine(str(folder), config, spec, num_probes=1, options={"max_total_tokens": 400})
    plain = PlainEngine(make_model("opt"), spec)
    try:
        assert_same_scores(engine, plain, {}, [AT_THETA] * 2, BATCH)
        sampling = SAMPLINGS["drawn"]
        assert engine.generate({}, [AT_THETA], OPEN, sampling) == plain.generate({}, [AT_THETA], OPEN, sampling)
    finally:
        engine.close()


@pytest.mark.parametrize("pair", CASES[:1], indirect=True, ids=case_name)
def test_an_example_that_does_not_fit_at_all_is_refused_with_the_option_to_change(pair):
    engine, _ = pair
    example = Example(tuple(range(60, 121)), INVOCATION, ((20,),), 0)
    with pytest.raises(InputError, match=r"--sglang\.max-total-tokens"):
        engine.score(some_theta(engine.tensor_shapes), [AT_THETA], [example])


@needs_sglang
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs real models")
@pytest.mark.parametrize(("name", "kind"), [("opt-imdb-4m", "opt"), ("stories260K", "llama")])
def test_real_models_score_as_in_the_plain_engine(name, kind):
    folder, spec = SHARED / "models" / name, make_spec(kind, "activated")
    plain = PlainEngine(AutoModelForCausalLM.from_pretrained(folder), spec)
    engine = SglangEngine(str(folder), plain.model.config, spec, num_probes=3, options={"max_total_tokens": 2000})
    try:
        theta = {n: v / np.float32(10) for n, v in some_theta(plain.tensor_shapes).items()}
        for _ in range(2):
            assert_same_scores(engine, plain, theta, PROBES, BATCH)
        assert engine.counts.tokens_cached > 0
    finally:
        engine.close()


# ---- what is refused, before anything is loaded


@pytest.mark.skipif(INSTALLED, reason="SGLang is installed")
def test_without_sglang_one_sentence_says_how_to_get_it(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--engine", "sglang"])
    assert stop.value.code == 2
    assert 'pip install "zotune[sglang]"' in capsys.readouterr().err


@needs_sglang
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sglang.tp-sise", "2"], "--sglang.tp-sise: SGLang has no such option; did you mean --sglang.tp-size?"),
        (["--sglang.model-path", "x"], "--sglang.model-path: use --model"),
        (["--sglang.page-size", "16"], "--sglang.page-size: zotune sets this itself"),
        (["--kv-cache-gb", "1"], "use --sglang.max-total-tokens"),
        (["--num-threads", "1"], "OMP_NUM_THREADS"),
        (["--engine", "torch", "--sglang.tp-size", "2"], "have no effect with --engine torch"),
    ],
)
def test_wrong_options_end_with_exit_code_2(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--engine", "sglang", *flags])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_flags_of_sglang_are_taken_out_of_the_command_line_with_their_values():
    command = parse(
        ["train", "--sglang.tp-size", "2", "--seed", "3", "--sglang.mem-fraction-static=0.5", "--sglang.enable-metrics"]
    )
    assert command.tables == {"sglang": {"tp_size": 2, "mem_fraction_static": 0.5, "enable_metrics": True}}
    assert command.seed == 3


@needs_sglang
def test_options_of_sglang_are_its_own():
    check_options({"tp_size": 2, "quantization": "awq", "attention_backend": "triton"})
    with pytest.raises(InputError, match="no such option"):
        check_options({"temperature": 1})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GPT2Config(architectures=["GPT2LMHeadModel"]), "GPT2LMHeadModel is not among the models"),
        (
            OPTConfig(architectures=["OPTForCausalLM"], activation_function="gelu_new"),
            "leave out this model's 'gelu_new'",
        ),
    ],
)
def test_models_that_sglang_would_run_otherwise_are_refused_with_the_reason(config, message):
    with pytest.raises(InputError, match=message):
        check_config(config, {})


# ---- rows, without SGLang


@pytest.mark.parametrize("activated", [True, False])
def test_every_token_of_every_candidate_is_scored_once(activated):
    plan = plan_rows(BATCH, activated)
    scored = [(row.example, c, row.tokens[: row.first_scored + position + 1], token)
              for row in (*plan.trunks, *plan.rows) for c, position, token in row.targets]  # fmt: skip
    expected = [
        (index, c, example.prompt + example.invocation + candidate[:offset], token)
        for index, example in enumerate(BATCH)
        for c, candidate in enumerate(example.candidates)
        for offset, token in enumerate(candidate)
    ]
    assert sorted(scored) == sorted(expected)


def test_the_common_prefix_is_what_all_begin_with():
    assert common_prefix([(1, 2, 3), (1, 2), (1, 2, 4)]) == (1, 2)
    assert common_prefix([(1,), (2,)]) == ()
    assert common_prefix([]) == ()


@needs_sglang
@pytest.mark.parametrize("make_config", [Qwen2Config, Qwen3Config])
def test_qwen_scores_and_has_gradients_as_in_the_plain_engine(make_config, tmp_path):
    config = make_config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=CONTEXT, pad_token_id=0, bos_token_id=1,
        eos_token_id=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path)
    plain = with_lens(AutoModelForCausalLM.from_pretrained(tmp_path), "llama", "activated")
    options = {"max_total_tokens": 400}
    config = AutoConfig.from_pretrained(tmp_path)
    engine = SglangEngine(str(tmp_path), config, plain.spec, num_probes=2, options=options)
    try:
        assert_same_scores(engine, plain, some_theta(plain.tensor_shapes), PROBES, BATCH)
        assert_same_lens_gradient(engine, plain)
    finally:
        engine.close()


# ---- gradients by the lens

LENS_TARGETS = {"opt": ("out_proj", "fc2"), "llama": ("o_proj", "down_proj")}


def with_lens(model, kind, scope, form="lora_fa"):
    """A plain engine that computes attention again, as SGLang's does."""
    spec = replace(make_spec(kind, scope), target_modules=LENS_TARGETS[kind], peft_type=form)
    plain: Any = PlainEngine(model, spec)
    plain.layers.lens = measure_lens(plain, BATCH, 0)
    assert not plain.layers.lens.through
    return plain


def assert_same_lens_gradient(engine, plain, batch=BATCH):
    theta = {name: value + np.float32(0.1) * gaussian(11, name, value.shape)
             for name, value in initial_theta(plain.tensor_shapes, 3).items()}  # fmt: skip

    def cotangents(scores):
        return np.random.default_rng(0).normal(size=scores.num_tokens.shape) * (scores.num_tokens > 0)

    scores, expected = plain.lens_gradient(theta, batch, cotangents)
    found_scores, found = engine.lens_gradient(theta, batch, cotangents)
    np.testing.assert_allclose(found_scores.log_probs, scores.log_probs, rtol=TOLERANCE, atol=TOLERANCE)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, atol=TOLERANCE * np.abs(gradient).max(), err_msg=name)


@needs_sglang
@pytest.mark.parametrize(
    ("kind", "scope", "form", "options"),
    [
        ("opt", "everywhere", "lora_fa", {"chunked_prefill_size": 24}),
        ("llama", "activated", "lora_fa", {"tp_size": 2}), ("llama", "activated", "lora", {"tp_size": 2}),
    ],
)  # fmt: skip
def test_the_lens_gives_the_plain_engines_gradients_also_in_chunks_and_ranks(kind, scope, form, options, model_dirs):
    """Where SGLang would cut an example's scored tokens in two, it says what to raise."""
    plain = with_lens(make_model(kind), kind, scope, form)
    folder, options = model_dirs[kind], {"max_total_tokens": 400, **options}
    config = AutoConfig.from_pretrained(folder)
    engine = SglangEngine(str(folder), config, plain.spec, num_probes=1, options=options)
    try:
        assert engine.why_not("lens") is None
        assert "no derivatives" in str(engine.why_not("gradients"))
        if "chunked_prefill_size" in options:
            assert_same_lens_gradient(engine, plain)
            with pytest.raises(InputError, match=r"raise --sglang\.chunked-prefill-size"):
                assert_same_lens_gradient(engine, plain, BATCH[2:3])
        else:
            for _ in range(2):
                assert_same_lens_gradient(engine, plain)
            lens, start = plain.layers.lens, engine.principal_components(BATCH, 0)
            plain.layers.start_from(start)
            plain.layers.lens = lens
            engine.start_from(start)
            assert_same_lens_gradient(engine, plain)
    finally:
        engine.close()


@needs_sglang
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"quantization": "fp8"}}, r"not --sglang\.quantization fp8"),
        ({"options": {"kv_cache_dtype": "fp8_e5m2"}}, r"not --sglang\.kv-cache-dtype fp8_e5m2"),
        ({"options": {"dp_size": 2}}, r"--sglang\.dp-size"),
        ({"config": OPTConfig(architectures=["OPTForCausalLM"], do_layer_norm_before=False)}, "norms must come before"),
    ],
)
def test_what_has_no_lens_on_sglang_is_refused_before_a_model_is_read(changes, message):
    spec = replace(make_spec("opt", "activated"), peft_type="lora_fa")
    request = EngineRequest("nowhere", OPTConfig(), spec, "float32", "cpu", measured=frozenset({"lens"}))
    with pytest.raises(NoLens, match=message):
        SglangKind().open(replace(request, **changes))


@needs_sglang
def test_the_lens_refuses_modules_that_it_does_not_reach_on_sglang(reviews_file, opt_dir, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([
            "train", "--engine", "sglang", "--estimator", "lens", "--model", str(opt_dir), "--task", "demo",
            "--train-data", str(reviews_file), "--target-modules", "q_proj", "--sglang.max-total-tokens", "400",
            "--output-dir", str(tmp_path / "run"),
        ])  # fmt: skip
    assert stop.value.code == 2
    assert "with --engine sglang it adapts out_proj and fc2, and not q_proj" in capsys.readouterr().err
