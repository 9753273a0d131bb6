"""Examples with their answers before every prompt: against prompts that are written out by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import REVIEWS
from tests.test_templates import DEMO, PLAIN, TOKENIZERS, encode_one
from zotune import evaluate, mezo_finetune, predict, resume
from zotune.assemble.data import load_data
from zotune.config.reading import make_config
from zotune.data.demo import demo_path
from zotune.data.demonstrations import BREAK, demonstrations_text
from zotune.data.records import load_records
from zotune.data.tasks import TASKS
from zotune.data.templates import Encoder
from zotune.data.texts import TextExample, expand, to_texts
from zotune.engine.torch.prefix_cache import BLOCK
from zotune.errors import InputError
from zotune.inference import _config, _demonstrations, _labelled, _load
from zotune.zo.protocol import AT_THETA

SHOWN = 'A "fine" film. It was great\n\nA bore It was terrible\n\n'
SETTINGS: dict[str, Any] = {"model": "demo", "task": "demo", "dtype": "float32"}
RECORDS = [{**review, "text": f"{review['text']} {number}"} for number, review in enumerate(REVIEWS)]


def test_demonstrations_are_written_with_their_answers():
    records = [{"text": 'A "fine" film. ', "label": 1}, {"text": "A bore", "label": 0}]
    assert demonstrations_text(to_texts(load_records(records, "--data"), TASKS["demo"], {}), TASKS["demo"]) == SHOWN
    line = {"premise": "It rained.", "question": "effect", "choice1": "It was wet.", "choice2": "No.", "label": 0}
    texts = to_texts(expand(load_records([line], "--data"), TASKS["copa"], {}), TASKS["copa"], {})
    assert demonstrations_text(texts, TASKS["copa"]) == "It rained so it was wet.\n\n"
    line = {"question": "2 and 2?", "answer": "4"}
    texts = to_texts(load_records([line], "--data"), TASKS["gsm8k"], {})
    assert demonstrations_text(texts, TASKS["gsm8k"]) == "Question: 2 and 2?\nAnswer: 4\n\n"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_are_those_of_the_text_written_out(name):
    known = TOKENIZERS[name]
    if isinstance(known, Path) and not known.is_dir():
        pytest.skip(f"{known} is not at hand")
    tokenizer = AutoTokenizer.from_pretrained(known) if isinstance(known, Path) else known
    for prompt in ("warm and clever", 'A "fine" film.', "9 lives"):
        text = TextExample(prompt, 1, "", "here")
        encoder = Encoder(tokenizer, TASKS["demo"], 512, activated=True, demonstrations=SHOWN)
        (example,) = encoder.encode([text]).examples
        whole = tokenizer(f"{SHOWN}{prompt} It was great").input_ids
        assert list(example.prompt + example.invocation + example.candidates[1]) == whole
        assert example.prompt[: len(encoder.head)] == encoder.head


def test_only_the_examples_own_prompt_is_cut():
    long = TextExample(" and ".join(review["text"] for review in REVIEWS[:6]), 1, "", "here")
    encoder = Encoder(DEMO, TASKS["demo"], 60, activated=True, demonstrations=SHOWN)
    (cut,) = encoder.encode([long]).examples
    whole = encode_one(DEMO, TASKS["demo"], long).prompt
    assert len(cut.prompt + cut.invocation) + 1 == 60
    assert cut.prompt[: len(encoder.head)] == encoder.head
    assert cut.prompt[len(encoder.head) :] == whole[-(len(cut.prompt) - len(encoder.head)) :]


def test_too_many_are_refused_with_numbers():
    tokens = len(PLAIN(SHOWN).input_ids) + len(PLAIN(" It was").input_ids)
    words = max(len(PLAIN(f" {word}").input_ids) for word in ("terrible", "great"))
    encoder = Encoder(PLAIN, TASKS["demo"], 20, activated=True, demonstrations=SHOWN)
    message = rf"demonstrations \(--num-demonstrations\), .* have {tokens + words} tokens.* --max-length 20"
    with pytest.raises(InputError, match=message):
        encoder.encode([TextExample("a film", 1, "", "here")])
    with pytest.raises(InputError, match="--num-demonstrations must be at most 35, got 36"):
        load_data(make_config({**SETTINGS, "num_demonstrations": 36}), RECORDS)
    with pytest.raises(InputError, match="--num-demonstrations: task lm has no prompt"):
        load_data(make_config({"task": "lm", "num_demonstrations": 1}), [{"text": "a"}, {"text": "b"}, {"text": "c"}])


def test_they_are_drawn_by_the_data_seed_and_not_trained_on():
    def load(**settings: Any) -> Any:
        return load_data(make_config({**SETTINGS, "num_demonstrations": 4, **settings}), RECORDS)

    data = load()
    shown = data.demonstrations.split(BREAK)[:-1]
    assert len(set(shown)) == 4
    others = {text.prompt for text in (*data.train, *data.evaluation)}
    assert len(others) == len(RECORDS) - 4
    assert not {text.rpartition(" It was")[0] for text in shown} & others
    assert load(seed=5).demonstrations == data.demonstrations == load(max_train_samples=3).demonstrations
    assert load(data_seed=5).demonstrations != data.demonstrations


@pytest.mark.parametrize("engine", ["torch", "plain"])
def test_scores_are_those_of_plain_prompts(engine, tmp_path):
    """By hand: the text of the demonstrations in the template, and transformers alone."""
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    settings = {**SETTINGS, "engine": engine}
    found = evaluate(RECORDS[:3], train_data=str(train), num_demonstrations=3, **settings)
    text = load_data(make_config({**SETTINGS, "train_data": str(train), "num_demonstrations": 3})).demonstrations
    model = AutoModelForCausalLM.from_pretrained(demo_path("model"), dtype=torch.float32).eval()
    losses = []
    for record in RECORDS[:3]:
        token_ids = DEMO(f"{text}{record['text']} It was").input_ids
        with torch.no_grad():
            logits = model(torch.tensor([token_ids])).logits[0, -1].double()
        words = [DEMO(f" {word}", add_special_tokens=False).input_ids for word in ("terrible", "great")]
        losses.append(-logits[[word[0] for word in words]].log_softmax(-1)[record["label"]].item())
    assert found.loss == pytest.approx(np.mean(losses), abs=1e-5)  # fp32 logits, summed in another order
    assert found.loss != pytest.approx(evaluate(RECORDS[:3], **settings).loss, abs=1e-3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return mezo_finetune(
        "demo", RECORDS, RECORDS[:6], task="demo", num_demonstrations=2, num_steps=2, batch_size=4, directions=2,
        dtype="float32", learning_rate=0.05, output_dir=str(tmp_path_factory.mktemp("run") / "run"),
    )  # fmt: skip


def test_an_adapter_remembers_them_also_outside_its_run(run, tmp_path):
    """PEFT finds the last invocation, so the one of a demonstration does not switch the adapter on."""
    from peft import PeftModel

    found = evaluate(RECORDS[:6], adapter=run.adapter)
    assert found.loss == pytest.approx(run.final.loss, abs=1e-6)
    folder = tmp_path / "adapter"
    folder.mkdir()
    for file in Path(run.adapter).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    outside: dict[str, Any] = {**SETTINGS, "model": str(demo_path("model")), "adapter": folder}
    assert evaluate(RECORDS[:6], **outside).loss == pytest.approx(found.loss, abs=1e-6)
    assert predict([record["text"] for record in RECORDS[:6]], **outside) == [
        TASKS["demo"].label_words[guess] for guess in found.predictions or ()
    ]
    text = json.loads((folder / "zotune.json").read_text())["demonstrations"]
    base = AutoModelForCausalLM.from_pretrained(demo_path("model"), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder).eval()
    losses = []
    for record in RECORDS[:6]:
        token_ids = DEMO(f"{text}{record['text']} It was").input_ids
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([token_ids])).logits[0, -1].double()
        words = [DEMO(f" {word}", add_special_tokens=False).input_ids[0] for word in ("terrible", "great")]
        losses.append(-logits[words].log_softmax(-1)[record["label"]].item())
    assert found.loss == pytest.approx(np.mean(losses), abs=1e-5)
    assert evaluate(RECORDS[:6], num_demonstrations=0, **outside).loss != pytest.approx(found.loss, abs=1e-3)


def test_a_run_goes_on_with_the_same_ones(run):
    before = (Path(run.run_folder) / "journal.jsonl").read_bytes()
    again = resume(run.run_folder)
    assert again.final == run.final
    assert (Path(run.run_folder) / "journal.jsonl").read_bytes() == before


@pytest.mark.parametrize(("activated", "block"), [(True, BLOCK), (False, 1)])
def test_their_keys_and_values_are_computed_once(activated, block, run, tmp_path):
    """In scope activated in whole blocks, which is what the prefix cache shares."""
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    settings = {**SETTINGS, "train_data": str(train), "num_demonstrations": 20}
    adapter = run.adapter if activated else None
    config = _config(adapter, settings)
    task, texts = _labelled(config, RECORDS[:4], None)
    predictor = _load(config, task, adapter, texts, _demonstrations(config, task, adapter, settings))
    try:
        predictor.engine.score(predictor.theta, [AT_THETA], predictor.examples)
        first, *others = (example.prompt for example in predictor.examples)
        shared = min(sum(_same_so_far(first, other)) for other in others)
        invocations = sum(len(example.invocation) for example in predictor.examples)
        assert shared > BLOCK
        expected = len(first) + sum(len(other) - shared // block * block for other in others) + invocations
        assert predictor.engine.stats.tokens_computed == expected
    finally:
        predictor.engine.close()


def _same_so_far(first: tuple[int, ...], second: tuple[int, ...]) -> list[bool]:
    return [first[: i + 1] == second[: i + 1] for i in range(min(len(first), len(second)))]
