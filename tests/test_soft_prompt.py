"""A soft prompt: both engines agree with PEFT's own prompt tuning, and with each other, on every kind of model."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, PromptTuningConfig, get_peft_model
from transformers import OPTConfig, RepetitionPenaltyLogitsProcessor

from tests.conftest import CONFIGS, CONTEXT, VOCABULARY, make_model, make_tokenizer
from zotune import InputError, evaluate, mezo_finetune
from zotune.adapter.forms import initial_theta
from zotune.adapter.peft_files import load_adapter, save_adapter
from zotune.adapter.spec import PROMPT_EMBEDDINGS, PromptSpec
from zotune.cli import main
from zotune.config.reading import read_toml
from zotune.data.task_choice import choose_task
from zotune.data.tasks import TASKS
from zotune.data.templates import Encoder
from zotune.data.texts import TextExample
from zotune.engine import ENGINES
from zotune.engine.kind import EngineRequest
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.plain import PlainEngine
from zotune.zo.protocol import AT_THETA, Example, Probe, Sampling, TokenIds

TOLERANCE = 1e-5  # fp32 sums of up to 5 log-probabilities of size 10, in another order of operations
PROBES = [AT_THETA, Probe(1, 0.5), Probe(1, -0.5), Probe(2, 0.5)]
COUNTS = (3, 9)  # below and above what is worth sharing across a batch

tokens = st.integers(2, VOCABULARY - 1)


@st.composite
def texts(draw):
    """Prompts of text that may begin alike, with candidates that may begin alike."""
    start = draw(st.lists(tokens, max_size=4))
    prompts = draw(st.lists(st.lists(tokens, min_size=1, max_size=12), min_size=1, max_size=4))
    stem = draw(st.lists(tokens, max_size=2))
    ends = draw(st.lists(tokens, min_size=1, max_size=3, unique=True))
    return [Example((*start, *prompt), (50, 51), tuple((*stem, end) for end in ends), 0) for prompt in prompts]


def with_virtual(spec: PromptSpec, batch: list[Example]) -> list[Example]:
    return [Example(spec.virtual_tokens + e.prompt, e.invocation, e.candidates, e.label) for e in batch]


def some_theta(engine: PlainEngine | TorchEngine) -> dict[str, np.ndarray]:
    """Far from the start, so that the vectors matter."""
    return {name: np.float32(20) * value for name, value in initial_theta(engine.tensor_shapes, 3).items()}


@pytest.fixture(scope="module", params=[(kind, count) for kind in CONFIGS for count in COUNTS], ids=str)
def engines(request, tmp_path_factory: pytest.TempPathFactory):
    """The plain engine, fast ones, and PEFT's model with the adapter that was exported."""
    kind, count = request.param
    spec = PromptSpec(count)
    plain = PlainEngine(make_model(kind), spec)
    fast = [TorchEngine(make_model(kind), spec), TorchEngine(make_model(kind), spec, max_tokens_per_forward=60)]
    assert not any(engine.plain_reason for engine in fast)
    theta = some_theta(plain)
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(folder, theta, spec, "none")
    return spec, theta, plain, fast, PeftModel.from_pretrained(make_model(kind), str(folder)).eval()


@torch.no_grad()
def naive_log_prob(model: torch.nn.Module, num_virtual: int, example: Example, candidate: tuple[int, ...]) -> float:
    """Of a row of text alone; a model of PEFT's puts `num_virtual` places before it."""
    ids = example.prompt + example.invocation + candidate
    logits = model(input_ids=torch.tensor([ids])).logits[0, num_virtual:].float().log_softmax(-1)
    first = len(ids) - len(candidate)
    return sum(float(logits[place - 1, ids[place]]) for place in range(first, len(ids)))


@settings(max_examples=15)
@given(batch=texts())
def test_the_plain_engine_equals_peft_on_the_exported_adapter(engines, batch):
    spec, theta, plain, _, reference = engines
    scores = plain.score(theta, [AT_THETA], with_virtual(spec, batch)).log_probs[0]
    for index, example in enumerate(batch):
        for c, candidate in enumerate(example.candidates):
            expected = naive_log_prob(reference, spec.num_virtual_tokens, example, candidate)
            assert scores[index, c] == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)


@settings(max_examples=15)
@given(batch=texts())
def test_the_fast_engine_equals_the_plain_one_for_several_probes_in_a_pass(engines, batch):
    spec, theta, plain, fast, _ = engines
    batch = with_virtual(spec, batch)
    expected = plain.score(theta, PROBES, batch).log_probs
    assert np.abs(expected[0] - expected[1])[:, 0].min() > 1e-4
    for engine in fast:
        scores = engine.score(theta, PROBES, batch).log_probs
        np.testing.assert_allclose(scores, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_vectors_of_a_batch_are_computed_once_for_each_probe():
    spec = PromptSpec(9)
    engine = TorchEngine(make_model("opt"), spec)
    batch = with_virtual(spec, [Example((20 + i, 40), (50,), ((60,), (61,))) for i in range(3)])
    engine.score(some_theta(engine), PROBES, batch)
    assert engine.stats.forward_passes == 2
    assert engine.stats.tokens_computed == len(PROBES) * (9 + 3 * (2 + 1))
    assert engine.stats.tokens_reused == len(PROBES) * 2 * 9


@torch.no_grad()
def greedily(model: PeftModel, ids: TokenIds, count: int, penalty: float | None) -> TokenIds:
    """Token by token through whole passes: PEFT's own `generate` misses the vectors from the second token on where
    transformers is newer than it."""
    whole = torch.tensor([ids])
    for _ in range(count):
        logits = model(input_ids=whole).logits[:, -1]
        if penalty:
            logits = RepetitionPenaltyLogitsProcessor(penalty)(whole, logits)
        whole = torch.cat((whole, logits.argmax(-1, keepdim=True)), dim=1)
    return tuple(whole[0, len(ids) :].tolist())


@pytest.mark.parametrize("penalty", [None, 1.5])
@pytest.mark.parametrize("kind", CONFIGS)
def test_generation_equals_peft_token_for_token(kind, penalty, tmp_path):
    """Also where a model comes with settings by which transformers looks at the ids of the prompt."""
    spec = PromptSpec(5)
    engine = TorchEngine(make_model(kind), spec)
    theta = some_theta(engine)
    save_adapter(tmp_path, theta, spec, "none")
    reference = PeftModel.from_pretrained(make_model(kind), str(tmp_path)).eval()
    prompts = [Example((1, 9, 30, 41, 7), (50, 51), ((),)), Example((1, 12), (), ((),))]
    if penalty:  # padding counts as a token of the prompt there, so rows must not have any
        prompts = [prompts[0], prompts[0]]
    engine.model.generation_config.update(repetition_penalty=penalty, eos_token_id=None)
    probes = [AT_THETA, Probe(1, 5.0)]
    at_theta, moved = engine.generate(theta, probes, with_virtual(spec, prompts), Sampling(max_new_tokens=8))
    for prompt, text in zip(prompts, at_theta, strict=True):
        assert text == greedily(reference, prompt.prompt + prompt.invocation, 8, penalty)
    assert moved != at_theta


def test_without_virtual_tokens_and_after_close_it_is_the_base_model():
    base, model = make_model("opt"), make_model("opt")
    engine = TorchEngine(model, PromptSpec(4))
    example = Example((5, 6, 7), (50,), ((60, 61),))
    scores = engine.score(some_theta(engine), PROBES, [example]).log_probs[:, 0, 0]
    assert scores == pytest.approx(naive_log_prob(base, 0, example, (60, 61)), rel=TOLERANCE)
    engine.close()
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(ids).logits, base(ids).logits)
    with pytest.raises(IndexError):
        model(-ids)


def test_more_vectors_than_a_trial_of_the_model_has_room_for_are_still_shared():
    engine = TorchEngine(make_model("opt"), PromptSpec(CONTEXT - 10))
    assert engine.plain_reason is None


def test_the_vectors_have_the_width_of_the_embedding_where_a_projection_follows(tmp_path):
    import transformers

    config = CONFIGS["opt"]()
    assert isinstance(config, transformers.OPTConfig)
    config.word_embed_proj_dim = 8
    model = transformers.OPTForCausalLM(config).eval()
    reference = transformers.OPTForCausalLM(config).eval()
    reference.load_state_dict(model.state_dict())
    spec = PromptSpec(3)
    engine = PlainEngine(model, spec)
    assert engine.tensor_shapes == {PROMPT_EMBEDDINGS: (3, 8)}
    theta, example = some_theta(engine), Example((5, 6), (50,), ((60,),))
    save_adapter(tmp_path, theta, spec, "none")
    loaded = PeftModel.from_pretrained(reference, str(tmp_path)).eval()
    scores = engine.score(theta, [AT_THETA], with_virtual(spec, [example])).log_probs
    assert scores[0, 0, 0] == pytest.approx(naive_log_prob(loaded, 3, example, (60,)), rel=TOLERANCE)


def test_the_start_is_gaussian_and_depends_on_seed_and_shape_alone():
    shapes = {PROMPT_EMBEDDINGS: (50, 100)}
    values = initial_theta(shapes, 0)[PROMPT_EMBEDDINGS]
    assert values.dtype == np.float32
    assert values.std() == pytest.approx(0.02, rel=0.05)
    assert values.tobytes() == initial_theta(shapes, 0)[PROMPT_EMBEDDINGS].tobytes()
    assert np.abs(values - initial_theta(shapes, 1)[PROMPT_EMBEDDINGS]).min() > 0


# ---- text to examples


@pytest.mark.parametrize(("task", "max_length"), [("demo", 20), ("lm", 16)])
def test_virtual_tokens_begin_every_prompt_and_count_towards_max_length(task, max_length):
    spec = PromptSpec(7)
    encoder = Encoder(make_tokenizer(), TASKS[task], max_length, activated=False, virtual_tokens=spec.virtual_tokens)
    encoded = encoder.encode([TextExample("a great film " * 20, 0, "a great film " * 20, "here")])
    for example in encoded.examples:
        assert example.prompt[:7] == (-1, -2, -3, -4, -5, -6, -7)
        rest = (*example.prompt[7:], *example.invocation, *(t for c in example.candidates for t in c))
        assert min(rest) >= 0
        size = len(example.prompt) + len(example.invocation) + max(map(len, example.candidates))
        assert size == max_length or (task == "lm" and example is encoded.examples[-1])


def test_too_little_room_beside_the_virtual_tokens_is_refused():
    def encode(count: int) -> None:
        tokens = PromptSpec(count).virtual_tokens
        task = choose_task("demo", labels=("terrible", "great"))
        encoder = Encoder(make_tokenizer(), task, 12, activated=False, virtual_tokens=tokens)
        encoder.encode([TextExample("a great film", 0, "", "here")])

    encode(6)
    with pytest.raises(InputError, match="here: virtual tokens, invocation and completion alone have 12 tokens"):
        encode(9)
    with pytest.raises(InputError, match=r"num-virtual-tokens: 30 virtual tokens leave no room .* 12 tokens"):
        encode(30)


# ---- runs


@pytest.fixture(autouse=True)
def logging_ends_with_the_test() -> Iterator[None]:
    logger = logging.getLogger("zotune")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture(scope="module")
def run(opt_dir: Path, reviews_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, evaluated on what it learns."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    mezo_finetune(
        str(opt_dir), str(reviews_file), str(reviews_file), task="demo", tuning="prompt_tuning", num_steps=60,
        batch_size=16, directions=4, optimizer="adam", learning_rate=0.03, num_threads=1, output_dir=str(folder),
    )  # fmt: skip
    return folder


def test_a_run_learns_and_its_adapter_evaluates_as_the_run_did(run):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["final"]["loss"] < summary["initial"]["loss"] - 0.03
    config = read_toml(run / "config.toml")
    assert (config.scope, config.tables["prompt_tuning"]) == ("everywhere", {"num_virtual_tokens": 20})
    again = evaluate(adapter=run / "adapter")
    assert again.loss == pytest.approx(summary["final"]["loss"], rel=1e-6)


def test_the_commands_take_its_adapter(run, capsys, tmp_path):
    main(["evaluate", "--adapter", str(run / "adapter")])
    main(["replay", str(run), "--output-dir", str(tmp_path / "replayed")])
    data = tmp_path / "lines.jsonl"
    data.write_text('{"text": "a great film"}\n{"text": "a bore to watch"}\n')
    capsys.readouterr()
    main(["predict", "--adapter", str(run / "adapter"), "--data", str(data)])
    assert set(capsys.readouterr().out.split()) <= {"terrible", "great"}
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "replayed" / name).read_bytes() == (run / "adapter" / name).read_bytes()


def test_completions_are_generated_behind_it(run, opt_dir, capsys, tmp_path):
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"prompt": "a great"}\n{"prompt": "cold and stupid, said"}\n')
    main([
        "predict", "--adapter", str(run / "adapter"), "--task", "completion", "--data", str(data), "--max-new-tokens",
        "5",
    ])  # fmt: skip
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_an_adapter_that_peft_saved_is_read_back_and_used(opt_dir, tmp_path):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6)
    theirs = get_peft_model(make_model("opt"), config).eval()
    theirs.save_pretrained(str(tmp_path))
    theta, spec = load_adapter(tmp_path)
    assert spec == PromptSpec(6)
    example = Example((5, 6, 7), (50,), ((60,),))
    scores = PlainEngine(make_model("opt"), spec).score(theta, [AT_THETA], with_virtual(PromptSpec(6), [example]))
    assert scores.log_probs[0, 0, 0] == pytest.approx(naive_log_prob(theirs, 6, example, (60,)), rel=TOLERANCE)


# ---- what it does not go with

REFUSED = {
    "activated": (["--scope", "activated"], "--scope activated"),
    "sglang": (["--engine", "sglang"], "--engine sglang"),
    "jvp": (["--estimator", "jvp"], "--estimator jvp"),
    "rank": (["--lora-rank", "4"], "--lora-rank"),
    "alpha": (["--lora-alpha", "4"], "--lora-alpha"),
    "targets": (["--target-modules", "fc1"], "--target-modules"),
    "kept prompts": (["--kv-cache-gb", "1"], "--kv-cache-gb"),
    "full": (["--tuning", "full"], "--prompt-tuning.num-virtual-tokens has no effect with --tuning full"),
    "blocks": (["--noise-blocks", "2"], "--noise-blocks"),
    "none": (["--prompt_tuning.num-virtual-tokens", "0"], "num-virtual-tokens must be a whole number, 1 or more"),
    "too many": (["--prompt_tuning.num-virtual-tokens", str(CONTEXT)], f"num-virtual-tokens: {CONTEXT}"),
    "lora": (["--tuning", "lora"], "--prompt-tuning.num-virtual-tokens has no effect with --tuning lora"),
}


@pytest.mark.parametrize(("more", "piece"), REFUSED.values(), ids=REFUSED)
def test_what_it_does_not_go_with_is_refused_by_name(more, piece, opt_dir, reviews_file, tmp_path, capsys):
    flags = [
        "--model",
        str(opt_dir),
        "--train-data",
        str(reviews_file),
        "--task",
        "demo",
        "--tuning",
        "prompt_tuning",
        "--prompt_tuning.num-virtual-tokens",
        "20",
    ]
    with pytest.raises(SystemExit) as stopped:
        main(["train", *flags, *more, "--output-dir", str(tmp_path / "run")])
    assert stopped.value.code == 2
    assert piece in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_backpropagation_trains_it_too(opt_dir, reviews_file, tmp_path):
    result = mezo_finetune(
        str(opt_dir), str(reviews_file), str(reviews_file), task="demo", tuning="prompt_tuning", estimator="backprop",
        num_steps=20, learning_rate=0.03, num_threads=1, output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    assert result.initial
    assert result.final
    assert result.final.loss < result.initial.loss - 0.03


def test_an_engine_without_soft_prompts_refuses_its_adapter():
    with pytest.raises(InputError, match="--engine sglang has no soft prompts"):
        ENGINES["sglang"].open(EngineRequest("model", OPTConfig(), PromptSpec(), "float32", "cpu"))


def test_an_adapter_of_another_width_is_refused(run, model_dirs, tmp_path):
    save_adapter(tmp_path, {PROMPT_EMBEDDINGS: np.zeros((20, 5), dtype=np.float32)}, PromptSpec(), "none")
    with pytest.raises(InputError, match=r"--adapter: .* was made for another model"):
        evaluate(adapter=tmp_path, model=str(model_dirs["opt"]), task="demo")
