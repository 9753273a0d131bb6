"""Masked language models: scores equal to transformers', texts with a mask, and runs of every kind of training."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.numpy import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from tests.conftest import REVIEWS
from tests.masked_models import CONTEXT, FAMILIES, SIZES, VOCABULARY, make_masked, make_tokenizer, save
from zotune import InputError, evaluate, mezo_finetune, predict, resume
from zotune.adapter.spec import LoraSpec
from zotune.assemble.data import load_data
from zotune.assemble.model import find_model
from zotune.commands.analysis import Analyze
from zotune.config.reading import make_config
from zotune.data.classification import ClassificationEncoder
from zotune.data.masked import MaskedEncoder
from zotune.data.records import load_records
from zotune.data.tasks import TASKS, Task
from zotune.data.texts import to_texts
from zotune.engine.torch.blocks import find_blocks
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.lens import Lens
from zotune.engine.torch.lora import LoraLayers
from zotune.engine.torch.masked import _of_like_length
from zotune.engine.torch.model_kind import head_modules
from zotune.finetune import make_trainer
from zotune.replay import replay_run
from zotune.zo.protocol import AT_THETA, Example, Probe, Scores

PROBES = [AT_THETA, *(Probe(seed, 0.1) for seed in range(3))]
TOKENIZER = make_tokenizer()


def some_batch(lengths: list[int], seed: int = 0, candidates: int = 3) -> list[Example]:
    draw = np.random.default_rng(seed)
    return [
        Example(
            tuple(map(int, draw.integers(5, VOCABULARY, length))), (),
            tuple((int(token),) for token in draw.choice(np.arange(5, VOCABULARY), candidates, replace=False)), 0,
            int(draw.integers(0, length)),
        )
        for length in lengths
    ]  # fmt: skip


BATCH = some_batch([9, 14, 5, 20, 20, 33])
ENGINES: dict[Any, TorchEngine] = {}


def engine_of(family: str, targets: Any = None) -> TorchEngine:
    if (family, targets) not in ENGINES:
        ENGINES[family, targets] = TorchEngine(make_masked(family), LoraSpec(4, 8.0, targets or FAMILIES[family][2]))
    return ENGINES[family, targets]


# ---- scores


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_transformers_and_of_the_plain_engine(family):
    engine, model = engine_of(family), make_masked(family)
    assert engine.plain_reason is None
    assert not engine.plain.alone
    zero = {name: np.zeros(shape, np.float32) for name, shape in engine.tensor_shapes.items()}
    with torch.no_grad():
        for example, scores in zip(BATCH, engine.score(zero, [AT_THETA], BATCH).log_probs[0], strict=True):
            logits = model(input_ids=torch.tensor([example.prompt])).logits[0, example.mask_at]
            expected = logits.log_softmax(-1)[[token for (token,) in example.candidates]]
            np.testing.assert_allclose(scores, expected, atol=1e-5)
    theta, _ = engine.layers.trial()
    fast, plain = (made.score(theta, PROBES, BATCH).log_probs for made in (engine, engine.plain))
    np.testing.assert_allclose(fast, plain, atol=1e-5)
    assert np.abs(fast[0] - fast[1]).min() > 1e-5  # that the probes move every score


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_plain_engine(family):
    engine = engine_of(family)
    theta, _ = engine.layers.trial()
    weights = np.random.default_rng(0).normal(size=(len(BATCH), 3))
    for normalized in (True, False):
        cotangents = weights if normalized else weights - weights.mean(axis=1, keepdims=True)

        def given(scores: Scores, these: np.ndarray = cotangents) -> np.ndarray:
            return these

        _, found = engine.gradient(theta, BATCH, given, normalized)
        _, expected = engine.plain.gradient(theta, BATCH, given)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5 * np.abs(value).max())


def test_rounding_of_large_logits_in_half_precision_keeps_no_engine_from_reuse():
    """What a head in bfloat16 rounds may be more than what two texts differ by."""
    model = make_masked("bert")
    model.get_output_embeddings().weight.data += 15 * torch.randn(1, SIZES["hidden_size"])
    model.bfloat16()
    assert TorchEngine(model, LoraSpec(4, 8.0, ("query", "value"))).plain_reason is None


@given(
    lengths=st.lists(st.integers(2, CONTEXT), min_size=1, max_size=9), seed=st.integers(0, 99),
    family=st.sampled_from(sorted(FAMILIES)), num_probes=st.integers(1, 4),
)  # fmt: skip
@settings(max_examples=25)
def test_any_lengths_places_and_numbers_of_probes(lengths, seed, family, num_probes):
    engine, batch = engine_of(family), some_batch(lengths, seed)
    theta, _ = engine.layers.trial()
    fast, plain = (made.score(theta, PROBES[:num_probes], batch).log_probs for made in (engine, engine.plain))
    np.testing.assert_allclose(fast, plain, atol=1e-5)


@pytest.mark.parametrize("family", ["roberta", "modernbert", "deberta", "deberta-v3"])
def test_blocks_below_the_first_adapted_one_are_computed_once(family):
    names = "|".join(FAMILIES[family][2])
    engine = engine_of(family, rf".*\b2\b.*({names})")
    theta, _ = engine.layers.trial()
    seen: dict[int, set[int]] = {0: set(), 2: set()}
    blocks = find_blocks(engine.model)
    hooks = [
        blocks[index].register_forward_hook(lambda _, args, output, of=of: of.add(len(args[0])))
        for index, of in seen.items()
    ]
    batch = some_batch([12, 12, 12])
    fast = engine.score(theta, PROBES, batch).log_probs
    for hook in hooks:
        hook.remove()
    np.testing.assert_allclose(fast, engine.plain.score(theta, PROBES, batch).log_probs, atol=1e-5)
    assert seen == {0: {3}, 2: {3 if engine.layers.max_probes == 1 else 3 * len(PROBES)}}


def test_a_module_that_reads_what_belongs_to_no_probe_has_one_probe_a_pass():
    """DeBERTa's queries and keys are also asked about relative positions, which have no rows."""
    assert engine_of("deberta-v2").layers.max_probes == 1
    assert engine_of("roberta").layers.max_probes is None


def test_rows_of_like_length_go_together_unless_they_are_few():
    lengths = [40, 40, 39, 12, 12, 11]
    assert list(_of_like_length(list(range(6)), lengths, num_probes=20)) == [[0, 1, 2], [3, 4, 5]]
    assert list(_of_like_length(list(range(6)), lengths, num_probes=1)) == [[0, 1, 2, 3, 4, 5]]


# ---- texts


def encoded(task: Task, record: dict[str, Any], length: int = CONTEXT) -> tuple[str, Example]:
    (text,) = to_texts(load_records([record], "--data"), task, {})
    (example,) = MaskedEncoder(TOKENIZER, task, {}, length).encode([text]).examples
    assert example.mask_at is not None
    assert example.prompt[example.mask_at] == TOKENIZER.mask_token_id
    return str(TOKENIZER.decode(list(example.prompt))), example


REVIEW, PAIR = (
    {"text": "a great film ", "label": 1},
    {"premise": "I loved it.", "hypothesis": "It was a film.", "label": 0},
)
MADE = "<s>I loved it?<mask>, it was a film.</s>"


@pytest.mark.parametrize(
    ("name", "record", "text", "words"),
    [
        ("sst2", REVIEW, "<s>a great film It was<mask>.</s>", " terrible great"),
        ("mr", REVIEW, "<s>a great film It was<mask>.</s>", " terrible great"),
        ("sst5", REVIEW, "<s>a great film It was<mask>.</s>", " terrible bad okay good great"),
        (
            "trec", {"text": "Who was it?", "label": 3}, "<s><mask>: Who was it?</s>",
            " Expression Entity Description Human Location Number",
        ),
        ("rte", PAIR, MADE, " Yes No"), ("mnli", PAIR, MADE, " Yes Maybe No"), ("snli", PAIR, MADE, " Yes Maybe No"),
        ("cb", PAIR, MADE, " Yes No Maybe"),
    ],
)  # fmt: skip
def test_mezos_templates_for_roberta(name, record, text, words):
    found, example = encoded(TASKS[name], record)
    assert found == text
    assert TOKENIZER.decode([token for (token,) in example.candidates]) == words
    assert example.label == record["label"]


def test_the_mask_stands_where_the_template_has_it_or_behind_with_a_full_stop():
    task = Task("mine", "{mask}! {text}", labels=("bad", "good"))
    assert encoded(task, REVIEW)[0] == "<s><mask>! a great film</s>"
    task = Task("mine", "{text}", " All in all", ("bad", "good"))
    assert encoded(task, REVIEW)[0] == "<s>a great film All in all<mask>.</s>"


def test_the_longest_field_loses_its_end():
    record = {**PAIR, "premise": "I loved the cast. " * 12}
    task = TASKS["rte"]
    whole, _ = encoded(task, record, length=10_000)
    cut, example = encoded(task, record, length=30)
    assert len(example.prompt) == 30
    assert whole.startswith(cut[: cut.index("?")])
    assert cut.endswith("?<mask>, it was a film.</s>")
    (text,) = to_texts(load_records([record], "--data"), task, {})
    assert MaskedEncoder(TOKENIZER, task, {}, 30).encode([text]).num_truncated == 1


def test_a_pair_for_a_head_has_the_tokenizers_special_tokens_and_its_kinds():
    (text,) = to_texts(load_records([PAIR], "--data"), TASKS["rte"], {})
    for kinds in (False, True):
        tokenizer = make_tokenizer(kinds)
        (example,) = ClassificationEncoder(tokenizer, TASKS["rte"], {}, CONTEXT).encode([text]).examples
        expected = tokenizer(PAIR["premise"], PAIR["hypothesis"])
        assert list(example.prompt) == expected.input_ids
        assert example.candidates == ((0,), (1,))
        assert example.second_at == (expected.token_type_ids.index(1) if kinds else None)


# ---- the head


HEADED = ["roberta", "bert", "electra", "deberta", "modernbert"]


@pytest.mark.parametrize("family", HEADED)
def test_a_head_scores_as_transformers_with_each_probes_own_weights(family):
    model = make_masked(family, AutoModelForSequenceClassification, num_labels=3)
    reference = make_masked(family, AutoModelForSequenceClassification, num_labels=3)
    names = head_modules(model)
    engine = TorchEngine(model, LoraSpec(4, 8.0, FAMILIES[family][2], task_type="SEQ_CLS", modules_to_save=names))
    assert isinstance(engine.layers, LoraLayers)
    start = engine.layers.head.start(0)
    assert {f"base_model.model.{name}" for name, _ in reference.named_parameters() if name.startswith(names)} == set(
        start
    )
    labels = ((0,), (1,), (2,))
    batch = [
        Example(example.prompt, (), labels, 0, 0, len(example.prompt) // 2 if family == "bert" else None)
        for example in BATCH
    ]
    theta = {name: start.get(name, np.zeros(shape, np.float32)) for name, shape in engine.tensor_shapes.items()}
    scores = engine.score(theta, [AT_THETA], batch).log_probs[0]
    for example, found in zip(batch, scores, strict=True):
        kinds = {}
        if example.second_at:
            kinds = {"token_type_ids": (torch.arange(len(example.prompt)) >= example.second_at).long()[None]}
        with torch.no_grad():
            expected = reference(input_ids=torch.tensor([example.prompt]), **kinds).logits[0].log_softmax(-1)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    fast, plain = (made.score(theta, PROBES, batch).log_probs for made in (engine, engine.plain))
    np.testing.assert_allclose(fast, plain, atol=1e-5)
    head = next(name for name in start if name.endswith("weight"))
    moved = Probe(0, 0.1).of(theta)
    alone = engine.plain.score(theta | {head: moved[head]}, [AT_THETA], batch).log_probs[0]
    assert np.abs(alone - scores).max() > 1e-4


def test_an_encoder_alone_takes_a_new_head_and_has_none_of_its_own(data, tmp_path):
    """The folders of sentence encoders, and of many others, name the encoder's class alone."""
    torch.manual_seed(0)
    kind, own, _ = FAMILIES["bert"]
    encoder = AutoModel.from_config(getattr(transformers, kind)(**{**SIZES, **own}))
    folder = save(encoder, TOKENIZER, tmp_path / "encoder")
    ended = mezo_finetune(**settings_of(folder, data, "head, probes", tmp_path / "run") | {"num_steps": 1})
    assert ended.initial is not None
    assert ended.initial.loss == pytest.approx(np.log(2), abs=0.05)
    message = refused(folder, data, tmp_path)
    assert "which BertForMaskedLM needs: an encoder alone is trained with --head classification" in message


def test_gradients_of_the_head_are_those_of_backpropagation_by_the_lens_too():
    model = make_masked("roberta", AutoModelForSequenceClassification, num_labels=2)
    spec = LoraSpec(4, 8.0, ("output.dense",), task_type="SEQ_CLS", modules_to_save=("classifier",))
    engine = TorchEngine(model, spec)
    assert isinstance(engine.layers, LoraLayers)
    engine.layers.lens = Lens({}, {})
    theta, _ = engine.layers.trial()
    batch = [Example(example.prompt, (), ((0,), (1,)), 0, 0) for example in BATCH]
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(len(batch), 2))
    _, exact = engine.gradient(theta, batch, lambda scores: weights)
    _, by_lens = engine.lens_gradient(theta, batch, lambda scores: weights)
    last = "base_model.model.roberta.encoder.layer.2.output.dense.lora_B.weight"
    for name in [last, *engine.layers.head.shapes]:
        np.testing.assert_allclose(by_lens[name], exact[name], rtol=1e-4, atol=1e-5 * np.abs(exact[name]).max())


@pytest.mark.parametrize("family", HEADED)
@pytest.mark.parametrize("peft_type", ["lora", "vera"])
def test_derivatives_of_a_head_along_directions_are_those_of_backpropagation(family, peft_type):
    model = make_masked(family, AutoModelForSequenceClassification, num_labels=2)
    targets, names = FAMILIES[family][2], head_modules(model)
    engine = TorchEngine(model, LoraSpec(4, 8.0, targets, peft_type=peft_type, modules_to_save=names))
    theta, _ = engine.layers.trial()
    batch = [Example(example.prompt, (), ((0,), (1,)), 0, 0) for example in BATCH]
    weights = np.random.default_rng(0).normal(size=(len(batch), 2))
    _, gradient = engine.gradient(theta, batch, lambda scores: weights)
    probe = Probe(7, 0.0, derivative=True)
    z = probe.noise.direction(probe.seed, theta)
    along = sum(float((gradient[name] * z[name]).sum()) for name in theta)
    for made in (engine, engine.plain):
        tangents = made.score(theta, [probe], batch).tangents
        assert tangents is not None
        assert float((tangents[0] * weights).sum()) == pytest.approx(along, rel=1e-3)


@pytest.mark.parametrize("family", ["roberta", "bert", "electra", "modernbert"])
def test_the_lens_has_the_gradient_of_the_last_block_in_rows_of_any_length(family):
    targets = {"modernbert": ("Wo",)}.get(family, ("output.dense",))
    engine = TorchEngine(make_masked(family), LoraSpec(4, 8.0, targets))
    assert isinstance(engine.layers, LoraLayers)
    engine.layers.lens = Lens({}, {})
    theta, _ = engine.layers.trial()
    weights = np.random.default_rng(0).normal(size=(len(BATCH), 3))
    _, exact = engine.gradient(theta, BATCH, lambda scores: weights)
    names = [name for name in exact if "2." in name and "lora_B" in name]
    assert names
    for made in (engine, engine.plain):
        _, found = made.lens_gradient(theta, BATCH, lambda scores: weights)
        for name in names[-1:]:
            np.testing.assert_allclose(found[name], exact[name], rtol=1e-4, atol=1e-5 * np.abs(exact[name]).max())
        assert all(np.abs(value).max() > 0 for name, value in found.items() if "lora_B" in name)


# ---- runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make_masked("roberta"), TOKENIZER, tmp_path_factory.mktemp("masked") / "roberta")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "reviews.jsonl"
    path.write_text("".join(json.dumps(review) + "\n" for review in REVIEWS), "utf-8")
    return path


WAYS: dict[str, dict[str, Any]] = {
    "lens": {}, "probes": {"estimator": "one_sided"},
    "mezo": {"estimator": "spsa", "directions": 1, "optimizer": "sgd"},
    "jvp": {"estimator": "jvp"}, "backprop": {"estimator": "backprop"}, "full": {"tuning": "full"},
    "prompt tuning": {"tuning": "prompt_tuning", "prompt_tuning": {"num_virtual_tokens": 3}},
    "accuracy": {"objective": "accuracy"}, "head, lens": {"head": "classification"},
    "head, probes": {"head": "classification", "estimator": "one_sided"},
    "head, backprop": {"head": "classification", "estimator": "backprop"},
    "head, accuracy": {"head": "classification", "objective": "accuracy"},
    "head, jvp": {"head": "classification", "estimator": "jvp"},
    "head, full": {"head": "classification", "tuning": "full"},
    "head, prompt tuning": {
        "head": "classification", "tuning": "prompt_tuning", "prompt_tuning": {"num_virtual_tokens": 3},
    },
    "head, prompt, backprop": {
        "head": "classification", "tuning": "prompt_tuning", "prompt_tuning": {"num_virtual_tokens": 3},
        "estimator": "backprop",
    },
}  # fmt: skip


def settings_of(folder: Path, data: Path, way: str, output: Path) -> dict[str, Any]:
    return {
        "model": str(folder), "task": "sst2", "train_data": str(data), "eval_data": str(data), "num_steps": 4,
        "eval_steps": 2, "batch_size": 4, "num_threads": 1, "output_dir": str(output), **WAYS[way],
    }  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_runs_stop_and_go_on_to_the_bit_and_evaluate_as_they_ended(way, folder, data, tmp_path):
    wanted = settings_of(folder, data, way, tmp_path / "whole")
    whole = mezo_finetune(**wanted)
    with make_trainer(**wanted | {"output_dir": str(tmp_path / "stopped")}) as trainer:
        for _ in range(2):
            trainer.train_step()
    ended = resume(tmp_path / "stopped")
    assert (tmp_path / "stopped/journal.jsonl").read_text() == (tmp_path / "whole/journal.jsonl").read_text()
    assert ended.final == whole.final
    if "full" in way:
        head = WAYS[way].get("head", "lm")
        found = evaluate(str(data), model=str(whole.adapter), task="sst2", head=head, num_threads=1)
        replay_run(whole.run_folder, tmp_path / "replayed")
        assert (tmp_path / "replayed/model.safetensors").read_bytes() == (
            whole.adapter / "model.safetensors"
        ).read_bytes()
    else:
        found = evaluate(adapter=whole.adapter, num_threads=1)
        replay_run(whole.run_folder, tmp_path / "replayed")
        assert (tmp_path / "replayed/adapter_model.safetensors").read_bytes() == (
            whole.adapter / "adapter_model.safetensors"
        ).read_bytes()
        assert set(predict([{"text": "a great film"}], adapter=whole.adapter)) <= {"terrible", "great"}
    assert whole.final is not None
    assert found.loss == pytest.approx(whole.final.loss, abs=1e-6)


@pytest.mark.parametrize("way", ["lens", "prompt tuning", "head, lens", "head, backprop", "head, prompt tuning"])
def test_adapters_give_the_same_numbers_in_peft(way, folder, data, tmp_path):
    ended = mezo_finetune(**settings_of(folder, data, way, tmp_path / "run") | {"learning_rate": 0.1})
    if "head" in way:
        base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    else:
        base = AutoModelForMaskedLM.from_pretrained(folder)
    model = PeftModel.from_pretrained(base, ended.adapter).eval()
    losses = []
    for review in REVIEWS:
        text = review["text"] if "head" in way else f"{review['text']} It was <mask>."
        inputs = TOKENIZER(text, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        if "head" not in way:
            place = inputs.input_ids[0].tolist().index(TOKENIZER.mask_token_id)
            logits = logits[place + len(logits) - inputs.input_ids.shape[1]]  # behind a soft prompt
            logits = logits[
                [TOKENIZER(f" {word}", add_special_tokens=False).input_ids[0] for word in ("terrible", "great")]
            ]
        losses.append(-float(logits.log_softmax(-1)[review["label"]]))
    assert ended.final is not None
    assert np.mean(losses) == pytest.approx(ended.final.loss, abs=1e-5)
    assert ended.initial is not None
    assert abs(ended.final.loss - ended.initial.loss) > 2e-5


@pytest.mark.parametrize("kind", ["lora", "prompt tuning"])
def test_a_classifier_of_peft_gives_the_same_numbers_here(kind, folder, data, tmp_path):
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    configs: dict[str, Any] = {
        "lora": LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], init_lora_weights=False),
        "prompt tuning": PromptTuningConfig(
            task_type="SEQ_CLS", num_virtual_tokens=3, token_dim=base.config.hidden_size
        ),
    }
    model = get_peft_model(base, configs[kind]).eval()
    model.save_pretrained(str(tmp_path / "adapter"))
    losses = []
    for review in REVIEWS:
        with torch.no_grad():
            logits = model(**TOKENIZER(review["text"], return_tensors="pt")).logits[0]
        losses.append(-float(logits.log_softmax(-1)[review["label"]]))
    found = evaluate(
        str(data), adapter=tmp_path / "adapter", model=str(folder), task="sst2", head="classification", num_threads=1
    )
    assert found.loss == pytest.approx(np.mean(losses), abs=1e-5)


def test_a_head_learns_where_it_starts_from_nothing(folder, data, tmp_path):
    ended = mezo_finetune(
        **settings_of(folder, data, "head, backprop", tmp_path / "run")
        | {
            "num_steps": 60,
            "eval_steps": 60,
            "learning_rate": 1e-2,
            "batch_size": 16,
            "target_modules": ("all-linear",),
        }
    )
    assert ended.initial is not None
    assert ended.initial.loss == pytest.approx(np.log(2), abs=0.02)
    assert ended.final is not None
    assert ended.final.accuracy is not None
    assert ended.final.accuracy > 0.8
    spec = json.loads((ended.adapter / "adapter_config.json").read_text())
    assert spec["modules_to_save"] == ["classifier"]
    assert spec["task_type"] == "SEQ_CLS"
    names = load_file(ended.adapter / "adapter_model.safetensors")
    assert not [name for name in names if "classifier" in name and "lora" in name]


# ---- refusals


def refused(folder: Path, data: Path, tmp_path: Path, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        make_trainer(**settings_of(folder, data, "probes", tmp_path / "refused") | settings)
    assert not (tmp_path / "refused").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scope": "activated"}, "--scope activated: .* is a masked model, whose tokens see the whole text"),
        ({"num_demonstrations": 2}, "--num-demonstrations: .* takes no demonstrations"),
        ({"reward": ("length",), "estimator": "es", "max_new_tokens": 4}, "--reward: .* writes no texts"),
        ({"labels": ("unheard-of", "great")}, "--labels: 'unheard-of' is .* tokens"),
        ({"template": "{text} {mask} or {mask}"}, "--template: one {mask} stands for the label word"),
        ({"template": "{text} {mask}", "invocation": " so"}, "--invocation: the template says where the mask stands"),
        ({"max_length": 6}, "reviews.jsonl:[0-9]+: the template alone has"),
        ({"head": "classification", "tuning": "prompt_tuning", "prompt_tuning": {"num_virtual_tokens": 60}},
         "--prompt-tuning.num-virtual-tokens: 60 virtual tokens leave no room"),
        ({"head": "classification", "invocation": " It was"}, "--invocation: a classification head reads no"),
        ({"head": "classification", "template": "{text} {mask}"}, "--template: a classification head reads no {mask}"),
    ],
)  # fmt: skip
def test_what_a_masked_model_has_not_is_refused_with_the_reason(settings, message, folder, data, tmp_path):
    assert re.search(message, refused(folder, data, tmp_path, **settings))


def test_a_text_with_a_mask_of_its_own_is_refused(folder, tmp_path):
    data = tmp_path / "own.jsonl"
    data.write_text('{"text": "a <mask> film", "label": 0}\n' * 2, "utf-8")
    message = refused(folder, data, tmp_path, train_data=str(data), eval_data=None)
    assert re.search(r"own.jsonl:[12]: the text has the mask token '<mask>' in it", message)


def test_an_adapter_with_a_head_wants_a_head_and_one_without_none(folder, data, tmp_path):
    for way, head, message in (
        ("head, lens", "lm", "add --head classification"),
        ("lens", "classification", "has no head"),
    ):
        ended = mezo_finetune(**settings_of(folder, data, way, tmp_path / way) | {"num_steps": 1})
        assert message in refused(folder, data, tmp_path, adapter=str(ended.adapter), head=head)
        with pytest.raises(InputError, match=message):
            evaluate(adapter=ended.adapter, head=head, num_threads=1)


def test_a_run_goes_on_from_an_adapter_with_a_head(folder, data, tmp_path):
    first = mezo_finetune(**settings_of(folder, data, "head, lens", tmp_path / "first"))
    second = mezo_finetune(
        **settings_of(folder, data, "head, lens", tmp_path / "second") | {"adapter": str(first.adapter)}
    )
    assert second.initial == first.final


def test_a_causal_model_has_no_mask_and_no_new_head(opt_dir, data, tmp_path):
    assert "is a causal model, and {mask} is for masked ones" in refused(
        opt_dir, data, tmp_path, template="{text} It was {mask}."
    )
    assert "is a causal model, which has its own head" in refused(opt_dir, data, tmp_path, head="classification")


def test_analyze_finds_an_eps_by_the_exact_slopes_alone(folder, data, tmp_path, capsys):
    Analyze(
        model=str(folder), task="sst2", train_data=str(data), output_dir=str(tmp_path / "out"), directions=1,
        batch_size=4,
    ).run()  # fmt: skip
    found = json.loads((tmp_path / "out/analysis.json").read_text())
    assert "recommended eps" in capsys.readouterr().out
    assert found["reuse"] == found["layers"] == []
    sizes = [row["slope_size"] for row in found["rows"] if 1e-3 <= row["epsilon"] <= 1e-2]
    assert np.ptp(sizes) < 0.05 * max(sizes)


def test_sglang_has_no_masked_models(folder, data):
    config = make_config({"model": str(folder), "task": "sst2", "train_data": str(data), "engine": "sglang"})
    with pytest.raises(InputError, match=r"--engine sglang: .* is a masked model"):
        find_model(config, task=load_data(config).task)
