"""The tasks of SuperGLUE and others: the texts made of a record, the data sets as they lie about, and the options that
a record brings."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import SHARED
from tests.test_templates import SNAPSHOTS
from zotune import evaluate, predict
from zotune.data.demo import demo_path
from zotune.data.records import load_records
from zotune.data.task_choice import choose_task
from zotune.data.tasks import TASKS, Task
from zotune.data.templates import Encoder
from zotune.data.texts import TextExample, expand, to_texts
from zotune.errors import InputError

CASES = tomllib.loads((Path(__file__).parent / "tasks.toml").read_text())
DEMO = AutoTokenizer.from_pretrained(demo_path("model"))
DATA = SHARED / "data"
COUNTS = {  # examples of each file: a passage of MultiRC has many
    "sst2/dev": 872, "mr/test": 2000, "trec/test": 500, "rte/val": 277, "cb/val": 56, "boolq/dev32": 32, "wsc/val": 104,
    "wic/val": 638, "multirc/dev32": 167, "copa/val": 100, "record/dev32": 32, "gsm8k/test": 1319,
}  # fmt: skip
QUESTIONS: list[dict[str, Any]] = [
    {"text": "The sky is", "choices": ["blue", "an old and heavy stone", "x"], "label": 0},
    {"text": "Stones are", "choices": ["hard", "soft as butter"], "label": "hard"},
]


def texts_of(records: Any, task: Task, **names: str) -> list[TextExample]:
    return to_texts(expand(load_records(records, "--data"), task, names), task, names)


def test_every_task_has_its_texts_written_down():
    assert set(TASKS) == set(SNAPSHOTS) | set(CASES) | {"chat", "chat_pair"}  # in the words of a model's template


@pytest.mark.parametrize("name", CASES)
def test_every_shape_of_a_record_gives_the_texts_written_down(name):
    case, task = CASES[name], TASKS[name]
    for line in case["records"]:
        encoder = Encoder(DEMO, task, 512, activated=bool(task.invocation))
        (example,) = encoder.encode(texts_of([json.loads(line, strict=False)], task)).examples
        assert DEMO.decode(list(example.prompt + example.invocation), skip_special_tokens=True) == case["prompt"]
        assert [DEMO.decode(list(candidate)) for candidate in example.candidates] == case["candidates"]
        assert example.label == case.get("label")


@pytest.mark.parametrize("name", COUNTS)
def test_local_files_are_read_as_they_lie(name):
    path = DATA / f"{name}.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not at hand")
    task = TASKS[name.partition("/")[0]]
    texts = texts_of(str(path), task)
    assert len(texts) == COUNTS[name]
    if task.classifies:
        assert len({text.label for text in texts}) > 1


def test_several_right_options_all_count():
    line = {"passage": "A, B, C.", "query": "@placeholder left", "entities": ["A", "B", "C"], "answers": ["C", "A"]}
    (text,) = texts_of([line], TASKS["record"])
    assert (text.label, text.also_right) == (2, (0,))
    found = [evaluate([line | {"answers": right}], model="demo", task="record") for right in (["A", "B", "C"], ["A"])]
    assert found[0].accuracy == 1.0
    assert found[1].accuracy == float(found[0].predictions == (0,))


@pytest.mark.parametrize(
    ("record", "label"),
    [
        ({"choices": ["red", "blue"], "label": 1}, 1),
        ({"choices": ["red", "blue"], "label": "blue"}, 1),
        ({"choices": ["red", "blue"], "label": "1"}, 1),
        ({"choices": ["1", "0"], "label": "0"}, 1),
        ({"choices": {"text": ["red", "blue"], "label": ["A", "B"]}, "label": "B"}, 1),
        ({"choices": {"text": ["red", "blue"], "label": ["1", "2"]}, "label": "1"}, 0),
    ],
)
def test_a_label_names_an_option_by_number_text_or_name(record, label):
    task = choose_task(None, choice_fields=["choices"])
    (text,) = texts_of([{"text": "It is"} | record], task)
    assert text.label == label


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"choices": ["red", "blue"], "label": 2}, r"label 2 in field 'label' is none of the options red, blue, nor"),
        ({"choices": ["red", "blue"], "label": "green"}, "label 'green'"),
        ({"choices": "red", "label": 0}, "field 'choices' should be a list of texts, got 'red'"),
        ({"choices": ["red"], "label": 0}, "should have two options or more"),
        ({"choices": ["red", " "], "label": 0}, "none empty"),
        ({"options": ["red", "blue"], "label": 0}, "no field 'choices'"),
    ],
)
def test_options_that_cannot_be_used_are_refused(record, message):
    with pytest.raises(InputError, match=rf"--data\[0\]: .*{message}"):
        texts_of([{"text": "It is"} | record], choose_task(None, choice_fields=["choices"]))


def test_options_in_fields_of_their_own_under_names_of_their_own():
    task = choose_task(None, template="{stem}", choice_fields=["a", "b"])
    (text,) = texts_of([{"stem": "It is", "one": "red", "b": "blue", "key": "b"}], task, a="one", label="key")
    assert (text.choices, text.label) == (("red", "blue"), 1)


@pytest.mark.parametrize(
    ("task", "record", "message"),
    [
        ("copa", {"premise": "A.", "choice1": "b", "choice2": "c", "question": "why", "label": 0}, "cause or effect"),
        ("multirc", {"passage": {"text": "A.", "questions": "b"}}, "field 'questions' should be a list of objects"),
        ("record", {"passage": {"text": "A.", "entities": [{"start": 0}]}, "qas": []}, "has no field 'end'"),
        ("record", {"passage": "A.", "query": "b", "entities": ["A"], "answers": []}, "field 'query' has no @placeh"),
        ("squad", {"title": "A", "context": "b", "question": "c", "answers": {"text": []}}, "one at least"),
        ("rte", {"premise": "A.", "label": 0}, "no field 'hypothesis'"),
    ],
)
def test_records_of_another_shape_are_refused_with_their_place(task, record, message):
    with pytest.raises(InputError, match=rf"--data\[0\]: .*{message}"):
        texts_of([record], TASKS[task])


@pytest.mark.parametrize("engine", ["torch", "plain"])
def test_options_of_any_number_and_length_are_scored_as_transformers_scores_them(engine):
    """The answer is the option with the highest mean log-probability a token."""
    model = AutoModelForCausalLM.from_pretrained(demo_path("model"), dtype=torch.float32).eval()
    losses, answers = [], []
    for question in QUESTIONS:
        means = []
        for choice in question["choices"]:
            prompt = DEMO(question["text"]).input_ids
            option = DEMO(f" {choice}", add_special_tokens=False).input_ids
            with torch.no_grad():
                logits = model(torch.tensor([prompt + option])).logits[0].double().log_softmax(-1)
            means.append(np.mean([logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(option)]))
        answers.append(int(np.argmax(means)))
        losses.append(np.log(np.exp(means).sum()) - means[0])
    settings: dict[str, Any] = {"model": "demo", "choice_fields": ["choices"], "engine": engine, "dtype": "float32"}
    found = evaluate(QUESTIONS, **settings)
    assert found.loss == pytest.approx(np.mean(losses), abs=1e-5)  # fp32 logits, summed in another order
    assert found.predictions == tuple(answers)
    assert found.accuracy == np.mean([answer == 0 for answer in answers])
    chosen = [question["choices"][answer] for question, answer in zip(QUESTIONS, answers, strict=True)]
    assert predict(QUESTIONS, **settings) == chosen
