"""Every field with content is read, or the run is refused or warned of it: nothing is left out without a word."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REVIEWS
from zotune.assemble.data import load_data
from zotune.config.reading import make_config
from zotune.data.records import load_records
from zotune.data.task_choice import choose_task
from zotune.data.tasks import TASKS
from zotune.data.texts import to_texts
from zotune.errors import InputError

# As Stanford Alpaca's train.py has them, with a line break after the last mark.
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)


def prompts_of(rows: list[dict[str, Any]], **settings: Any) -> list[str]:
    data = load_data(make_config(settings), rows, rows)
    return [text.prompt for text in data.train]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_alpacas_input_is_part_of_the_prompt_where_there_is_one(caplog):
    rows = [
        {"instruction": "Is it good?", "input": review["text"], "output": "yes" if review["label"] else "no"}
        for review in REVIEWS[:4]
    ]
    data = load_data(make_config({}), rows, rows)
    assert [text.prompt for text in data.train] == [WITH_INPUT.format(**row) for row in rows]
    assert [text.completion for text in data.train] == [row["output"] for row in rows]
    for other in ({"input": ""}, {"input": " \n"}, {"input": None}):
        assert prompts_of([rows[0] | other]) == [WITHOUT_INPUT.format(**rows[0])]
    assert prompts_of([{"instruction": "Why?", "output": "So."}]) == [WITHOUT_INPUT.format(instruction="Why?")]
    assert warnings(caplog) == []
    with pytest.raises(InputError, match=r"--data\[0\]: field 'instruction' is empty"):
        to_texts(load_records([rows[0] | {"instruction": ""}], "--data"), TASKS["alpaca"], {})


def test_an_instruction_alone_is_enough_to_predict_from():
    rows = ["Why?", {"instruction": "Why?"}, {"instruction": "Why?", "input": "this"}]
    texts = to_texts(load_records(rows, "--data", text_field="instruction"), TASKS["alpaca"], {}, need_labels=False)
    assert [text.prompt for text in texts] == [
        *[WITHOUT_INPUT.format(instruction="Why?")] * 2, WITH_INPUT.format(instruction="Why?", input="this"),
    ]  # fmt: skip


def test_other_names_of_alpacas_fields():
    rows = [{"instruction": "Why?", "context": "It is so.", "response": "Because."}]
    with pytest.raises(
        InputError, match="field 'context' would be left out, since the prompt is made of 'instruction'"
    ):
        prompts_of(rows)
    assert prompts_of(rows, task="alpaca") == [WITH_INPUT.format(instruction="Why?", input="It is so.")]


QUESTIONS = [{"passage": review["text"], "question": "is it good", "label": review["label"]} for review in REVIEWS[:4]]
LABELS = {"labels": ["no", "yes"], "invocation": " So"}


def test_content_beside_the_text_that_is_read_is_refused_with_what_to_do(caplog):
    with pytest.raises(InputError) as refused:
        prompts_of(QUESTIONS, **LABELS)
    assert str(refused.value) == (
        "--train-data[0]: field 'passage' would be left out, since the prompt is made of 'question'; say what it is to "
        "be made of, e.g. --template '{passage} {question}', or that passage is not needed: --fields text=question"
    )
    template = {"template": "{passage} {question}"}
    assert prompts_of(QUESTIONS, **LABELS, **template) == [f"{row['passage']} is it good" for row in QUESTIONS]
    assert warnings(caplog) == []
    assert prompts_of(QUESTIONS, **LABELS, fields=["text=question"]) == ["is it good"] * 4
    pairs = [{"question": "Why?", "context": "It is so.", "answer": "Because."}]
    with pytest.raises(InputError, match="field 'context' would be left out"):
        prompts_of(pairs)
    assert prompts_of(pairs, template="{context}\n{question}") == ["It is so.\nWhy?"]


def test_other_texts_that_nothing_uses_are_named_once(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    rows = [{**review, "id": 7, "title": "a title", "none": None} for review in REVIEWS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    load_data(make_config({"train_data": str(path), **LABELS}))
    assert warnings(caplog) == [
        f"field title of {path} is not used by the template; add {{title}} to --template, or ignore this"
    ]
    caplog.clear()
    prompts_of([{"prompt": "a", "completion": "b", "text": "ab", "tags": ["x"]}])
    assert warnings(caplog)[0].startswith(
        "fields text, tags of --train-data are not used by the template; add {text}, "
    )


def test_questions_are_not_taken_for_plain_text_where_their_context_would_be_lost(caplog):
    rows = [{"question": "who?", "context": "It was she.", "answers": {"text": ["she"], "answer_start": [7]}}]
    with pytest.raises(InputError, match="field 'context' would be left out, since the text is made of 'question'"):
        prompts_of(rows)
    prompts_of([{"text": "a", "source": "web", "document": "7", "label_name": "good"}])
    assert warnings(caplog) == [
        f"fields source, document of {option} are not used" for option in ("--train-data", "--eval-data")
    ]


def test_some_of_several_fields_may_be_empty():
    task = choose_task(None, template="{title}: {text}", labels=("no", "yes"))
    rows = [{"title": title, "text": text, "label": 0} for title, text in (("a", "b"), ("", "b"), ("a", None))]
    assert [text.prompt for text in to_texts(load_records(rows, "--data"), task, {})] == ["a: b", ": b", "a: "]
    with pytest.raises(InputError, match=r"--data\[0\]: field 'title' and field 'text' is empty"):
        to_texts(load_records([{"title": "", "text": " ", "label": 0}], "--data"), task, {})
    with pytest.raises(InputError, match=r"--data\[0\]: no field 'title'"):
        to_texts(load_records([{"text": "b", "label": 0}], "--data"), task, {})


def test_texts_to_be_learned_are_taken_as_they_stand_and_others_without_the_spaces_around_them():
    rows = [{"text": "  a\n", "prompt": " b ", "completion": "\tc ", "label": 0}]
    for task, prompt, completion in (("lm", "", "  a\n"), ("completion", " b ", "\tc "), ("demo", "a", "")):
        (text,) = to_texts(load_records(rows, "--data"), TASKS[task], {})
        assert (text.prompt, text.completion) == (prompt, completion)


def test_a_task_that_is_named_reads_what_it_says(tmp_path: Path):
    rows = [{"sentence": "a", "question": "b", "label": 1}]
    assert prompts_of(rows, task="sst2") == ["a"]
