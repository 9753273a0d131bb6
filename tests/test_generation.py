"""Generation of the fast engine, token for token against transformers' own `generate`, and what a text depends on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from transformers import TopPLogitsWarper

from tests.conftest import TARGETS, VOCABULARY, make_model
from tests.tiny_models import WINDOW, tiny_model
from zotune.adapter.peft_files import save_adapter
from zotune.adapter.spec import LoraSpec, PromptSpec
from zotune.engine.pool import EnginePool
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.plain import PlainEngine
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.engine.torch.rows_kv import RowsKV
from zotune.engine.torch.token_choice import TokenChoice
from zotune.zo.draws import gaussian
from zotune.zo.protocol import AT_THETA, Example, Probe, Sampling, Theta

INVOCATION = (50, 51)
SCOPES = ("activated", "everywhere")
PROBES = [AT_THETA, Probe(5, 0.05), Probe(5, -0.05)]
NOTHING = ((0,),)


def make_engine(kind: str, scope: str) -> TorchEngine:
    spec = LoraSpec(4, 8.0, TARGETS[kind], INVOCATION if scope == "activated" else None)
    return TorchEngine(make_model(kind), spec, PrefixCache(1e8, 8))


def some_theta(engine: TorchEngine) -> Theta:
    return {name: np.float32(0.2) * gaussian(11, name, shape) for name, shape in engine.tensor_shapes.items()}


def some_prompts(lengths: list[int], invocation: tuple[int, ...] = INVOCATION, seed: int = 0) -> list[Example]:
    draw = np.random.default_rng(seed)
    shared = draw.integers(60, VOCABULARY, 40)
    return [
        Example((*shared[: length // 2].tolist(), *draw.integers(60, VOCABULARY, length - length // 2).tolist()),
                invocation, NOTHING)
        for length in lengths
    ]  # fmt: skip


@pytest.fixture(scope="module", params=[(kind, scope) for kind in TARGETS for scope in SCOPES], ids="-".join)
def engine(request):
    """A fast engine that generates itself."""
    made = make_engine(*request.param)
    made.generate(some_theta(made), [AT_THETA], some_prompts([3]), Sampling(1))
    assert made.plain_reason is None
    assert made.generation.plain_reason is None
    return made


def by_peft(
    engine: TorchEngine, point: Theta, prompts: list[Example], count: int, stop: list[int], folder: Path
) -> Any:
    """What transformers' own generation gives with the exported adapter, row by row."""
    kind = {"OPTForCausalLM": "opt", "LlamaForCausalLM": "llama", "GPT2LMHeadModel": "gpt2"}[
        type(engine.model).__name__
    ]
    assert engine.spec is not None
    save_adapter(folder, point, engine.spec, "none")
    reference = PeftModel.from_pretrained(make_model(kind), folder).eval()
    texts = []
    for example in prompts:
        ids = torch.tensor([example.prompt + example.invocation])
        made = reference.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False,
            eos_token_id=stop or None, pad_token_id=0,
        )[0, ids.shape[1] :].tolist()  # fmt: skip
        ends = [index for index, token in enumerate(made) if token in stop]
        texts.append(tuple(made[: ends[0]] if ends else made))
    return texts


def test_texts_of_every_probe_are_those_of_transformers_with_its_adapter(engine, tmp_path):
    theta, prompts = some_theta(engine), some_prompts([17, 1, 30, 9, 9])
    texts = engine.generate(theta, PROBES, prompts, Sampling(12))
    every = [token for of_probe in texts for text in of_probe for token in text]
    stop = sorted(set(every), key=every.count)[: len(set(every)) // 3]
    for index, probe in enumerate(PROBES):
        assert texts[index] == by_peft(engine, probe.of(theta), prompts, 12, [], tmp_path / f"{index}")
    stopped = engine.generate(theta, PROBES, prompts, Sampling(12, stop_token_ids=tuple(stop)))
    assert len({len(text) for of_probe in stopped for text in of_probe}) > 2
    for index, probe in enumerate(PROBES):
        assert stopped[index] == by_peft(engine, probe.of(theta), prompts, 12, stop, tmp_path / f"{index} stopped")
    assert len({tuple(of_probe) for of_probe in texts}) == 3


def test_sixty_four_rows_are_those_of_the_plain_engine(engine):
    theta, prompts = some_theta(engine), some_prompts([1 + 5 * i % 23 for i in range(16)])
    probes = [AT_THETA, Probe(1, 0.1), Probe(1, -0.1), Probe(2, 0.1)]
    stop = tuple(range(0, VOCABULARY, 9))
    texts = engine.generate(theta, probes, prompts, Sampling(10, stop_token_ids=stop))
    assert texts == engine.plain.generate(theta, probes, prompts, Sampling(10, stop_token_ids=stop))
    assert len({len(text) for of_probe in texts for text in of_probe}) > 3


@settings(max_examples=12)
@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=6),
    invocation=st.sampled_from([(), INVOCATION, (51,)]),
    repeated=st.integers(1, 3),
    probes=st.integers(1, 4),
    count=st.integers(1, 34),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_p=st.sampled_from([1.0, 0.9, 0.4]),
    stop=st.sampled_from([(), tuple(range(0, VOCABULARY, 7))]),
    budget=st.sampled_from([1, 9000, 1e9]),
    max_tokens=st.sampled_from([1, 30, 8192]),
    seed=st.integers(0, 9),
)
def test_texts_of_any_shape_are_those_of_the_plain_engine(
    engine, lengths, invocation, repeated, probes, count, temperature, top_p, stop, budget, max_tokens, seed
):
    theta, prompts = some_theta(engine), some_prompts(lengths, invocation, seed) * repeated
    some = [AT_THETA, *(Probe(index, 0.1) for index in range(1, probes))]
    sampling = Sampling(count, temperature, seed, stop, top_p)
    engine.generation.decoding.max_bytes, engine.passes.max_tokens = budget, max_tokens
    assert engine.generate(theta, some, prompts, sampling) == engine.plain.generate(theta, some, prompts, sampling)


def test_a_soft_prompt_and_all_parameters_go_on_as_in_the_plain_engine():
    prompts, sampling = some_prompts([9, 4, 1], (60, 61)), Sampling(9, 0.8, 3, tuple(range(0, VOCABULARY, 9)))
    for spec in (PromptSpec(5), None):
        engine = TorchEngine(make_model("llama"), spec)
        theta, probes = engine.layers.trial()
        virtual = spec.virtual_tokens if spec else ()
        some = [replace(example, prompt=virtual + example.prompt) for example in prompts]
        texts = engine.generate(theta, [*probes, Probe(3, 0.1)], some, sampling)
        assert engine.generation.plain_reason is None
        assert texts == engine.plain.generate(theta, [*probes, Probe(3, 0.1)], some, sampling)


def test_a_text_depends_on_no_company_and_all_probes_have_the_same_noise(engine):
    theta, prompts = some_theta(engine), some_prompts([12, 5, 5, 20])
    seeds = (4, 8, 15, 16)
    sampling = Sampling(10, 1.0, seeds=seeds)
    same_place = [AT_THETA, Probe(1, 0.0), Probe(2, 0.1)]
    texts = engine.generate(theta, same_place, prompts, sampling)
    assert texts[0] == texts[1] != texts[2]
    for index, example in enumerate(prompts):
        ((alone,),) = engine.generate(theta, [AT_THETA], [example], replace(sampling, seeds=(seeds[index],)))
        assert alone == texts[0][index]


def test_samples_of_a_prompt_differ_by_their_seeds(engine):
    theta, (example,) = some_theta(engine), some_prompts([9])
    (texts,) = engine.generate(theta, [AT_THETA], [example] * 6, Sampling(8, 1.0, seed=2))
    assert len(set(texts)) == 6
    seeds = Sampling(8, 1.0, seed=2).row_seeds(6)
    given_seeds = Sampling(8, 1.0, seeds=(seeds[3], seeds[0], seeds[3]))
    assert engine.generate(theta, [AT_THETA], [example] * 3, given_seeds) == [[texts[3], texts[0], texts[3]]]
    with pytest.raises(ValueError, match="seeds has 3 for 2 prompts"):
        engine.generate(theta, [AT_THETA], [example] * 2, given_seeds)


def test_a_pool_gives_the_samples_of_one_engine():
    engines = [make_engine("opt", "activated") for _ in range(2)]
    theta, prompts = some_theta(engines[0]), some_prompts([9, 4, 9])
    pool = EnginePool(engines)
    want = engines[0].generate(theta, PROBES, prompts, Sampling(8, 1.0, seed=3))
    assert pool.generate(theta, PROBES, prompts, Sampling(8, 1.0, seed=3)) == want


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).repeat(4000, 1)
    choice = TokenChoice(Sampling(1, 2.0), range(4000))
    drawn = choice.tokens(logits, np.zeros(4000), np.arange(4000), 0)
    found = np.bincount(drawn, minlength=4) / 4000
    expected = torch.softmax(logits[0] / 2.0, dim=-1).numpy()
    assert np.abs(found - expected).max() < 0.03  # four standard deviations of the most frequent one


@pytest.mark.parametrize("max_kept_bytes", [0, 3000, 10**6])
def test_rows_at_different_places_draw_what_each_place_would(max_kept_bytes):
    torch.manual_seed(1)
    logits, prompts, places = torch.randn(12, 300), np.tile(np.arange(4), 3), np.repeat(np.arange(3), 4)
    sampling, seeds = Sampling(1, 1.0, top_p=0.99), (5, 6, 5, 7)
    choice = TokenChoice(sampling, seeds, max_kept_bytes)
    expected = [
        TokenChoice(sampling, seeds).tokens(logits[row : row + 1], prompts, prompts[row : row + 1], int(places[row]))
        for row in range(12)
    ]
    for _ in range(2):
        assert choice.tokens(logits, prompts, prompts, places).tolist() == np.concatenate(expected).tolist()


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.01, 2.0, 20.0])
def test_the_nucleus_is_that_of_transformers(top_p, spread):
    torch.manual_seed(1)
    logits = spread * torch.randn(20, 1500)
    scores = TokenChoice(Sampling(1, 0.8, top_p=top_p), range(20)).scores(logits, np.arange(20), 0)
    expected = TopPLogitsWarper(top_p)(torch.zeros((20, 0)), logits / 0.8)
    differ = scores.isfinite() != expected.isfinite()
    assert differ.sum() <= 2 * (spread < 1)  # nearly equal probabilities, summed in another order


def test_what_is_computed_is_counted(engine):
    theta, prompts = some_theta(engine), some_prompts([16, 24])
    stop = tuple(range(0, VOCABULARY, 9))
    engine.cache = PrefixCache(1e8, 8)
    for computed_before in (16 + 24 - 8, 0):  # of 8 tokens, the first block is the same
        before = vars(engine.stats).copy()
        texts = engine.generate(theta, PROBES, prompts, Sampling(10, stop_token_ids=stop))
        found = {name: value - before[name] for name, value in vars(engine.stats).items()}
        new = sum(min(len(text), 9) for of_probe in texts for text in of_probe)  # nothing comes of the last one
        needed = 3 * (16 + 24 + 2 * 2)
        first = computed_before + 3 * 2 * 2 if engine.scope == "activated" else needed - 3 * 8
        assert found["tokens_computed"] == first + new
        assert found["tokens_reused"] == needed - first


def test_texts_that_settings_of_the_model_change_are_the_plain_engines():
    engine = make_engine("llama", "activated")
    theta, prompts = some_theta(engine), some_prompts([9, 4])
    free = engine.generate(theta, PROBES, prompts, Sampling(12))
    engine.model.generation_config.repetition_penalty = 3.0
    texts = engine.generate(theta, PROBES, prompts, Sampling(12))
    assert texts == engine.plain.generate(theta, PROBES, prompts, Sampling(12)) != free


@pytest.mark.parametrize("scope", SCOPES)
def test_rows_that_reach_a_window_are_the_plain_engines(scope):
    model: Any = tiny_model("mistral")
    engine = TorchEngine(model, LoraSpec(2, 4.0, ("q_proj",), INVOCATION if scope == "activated" else None))
    theta, prompts = some_theta(engine), some_prompts([WINDOW - 4, 8, WINDOW + 3])
    assert engine.generate(theta, PROBES, prompts, Sampling(6)) == engine.plain.generate(
        theta, PROBES, prompts, Sampling(6)
    )
    assert engine.generation.plain_reason is None


@pytest.mark.parametrize("scope", SCOPES)
def test_the_trial_finds_rows_that_go_on_otherwise(scope, monkeypatch, caplog):
    """With a token of every row hidden from it, as by a mask that a model reads otherwise."""
    begin = RowsKV.begin

    def wrong(rows: RowsKV) -> None:
        begin(rows)
        assert rows.own_mask is not None
        rows.own_mask[..., 0] = -1e30

    monkeypatch.setattr(RowsKV, "begin", wrong)
    engine = make_engine("llama", scope)
    theta, prompts = some_theta(engine), some_prompts([9, 4])
    with caplog.at_level("INFO", logger="zotune"):
        texts = engine.generate(theta, PROBES, prompts, Sampling(6))
    assert "one probe after the other: those of LlamaForCausalLM come out otherwise" in caplog.text
    assert texts == engine.plain.generate(theta, PROBES, prompts, Sampling(6))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", TARGETS)
def test_in_half_precision_rows_go_on_together_with_likely_tokens(kind, scope):
    """Near-ties may fall otherwise; no token is much less likely than the best one in float32."""
    spec = LoraSpec(4, 8.0, TARGETS[kind], INVOCATION if scope == "activated" else None)
    half: Any = make_model(kind)
    engine = TorchEngine(half.to(torch.bfloat16), spec)
    exact = PlainEngine(make_model(kind), spec)
    theta, prompts = some_theta(engine), some_prompts([17, 1, 9])
    texts = engine.generate(theta, PROBES, prompts, Sampling(6))
    assert engine.generation.plain_reason is None
    every = tuple((token,) for token in range(VOCABULARY))
    for probe, of_probe in zip(PROBES, texts, strict=True):
        for example, text in zip(prompts, of_probe, strict=True):
            for end, token in enumerate(text):
                invocation = example.invocation + text[:end]
                scores = exact.score(theta, [probe], [Example(example.prompt, invocation, every)]).log_probs[0, 0]
                assert scores.max() - scores[token] < 0.5
