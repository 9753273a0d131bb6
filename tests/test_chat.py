"""Chats to learn from: each answer of the assistant is an example, in the words of a chat template."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_tokenizer
from zotune import InputError, evaluate, mezo_finetune, predict
from zotune.data.chat import in_words, with_template
from zotune.data.records import Record
from zotune.data.task_choice import choose_task
from zotune.data.tasks import TASKS, Task
from zotune.data.templates import Encoder
from zotune.data.texts import TextExample, to_texts

# transformers itself says by `generation` which tokens are the assistant's.
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content or 'call ' ~ "
    "m.tool_calls[0].function.name }}</s>{% endgeneration %}\n{% else %}{{ m.content }}</s>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "a great film?"},
    {"role": "assistant", "content": "warm and clever"},
    {"role": "user", "content": "the ending?"},
    {"role": "assistant", "content": "perfect"},
]
COLD = {"role": "assistant", "content": "cold"}
ANSWERS = ["warm and clever</s>", "perfect</s>"]


def tokenizer_with(template: str | None = TEMPLATE) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def chats_of(*records: dict[str, Any], template: str = TEMPLATE) -> tuple[Task, list[TextExample]]:
    found = [Record(fields, f"a:{number}") for number, fields in enumerate(records, 1)]
    task = choose_task(None, sample=records[0])
    return in_words(task, to_texts(found, task, {}), tokenizer_with(template))


def texts_and_answers(*records: dict[str, Any], template: str = TEMPLATE) -> list[tuple[str, str]]:
    task, texts = chats_of(*records, template=template)
    return [(text.prompt + task.invocation, text.completion) for text in texts]


def test_each_answer_is_an_example_whose_tokens_are_those_that_transformers_masks():
    tokenizer = tokenizer_with()
    task, texts = chats_of({"messages": TALK})
    assert (task.name, task.invocation) == ("chat", "<assistant>")
    first, second = Encoder(tokenizer, task, 256, activated=True).encode(texts).examples
    whole = tokenizer.apply_chat_template(
        TALK, return_assistant_tokens_mask=True, return_dict=True, tokenize=True
    )  # fmt: skip
    learnt = [token for token, mask in zip(whole["input_ids"], whole["assistant_masks"], strict=True) if mask]
    assert [*first.candidates[0], *second.candidates[0]] == learnt
    end = len(second.prompt + second.invocation + second.candidates[0])
    assert list(second.prompt + second.invocation + second.candidates[0]) == whole["input_ids"][:end]
    shared = first.prompt + first.invocation + first.candidates[0]
    assert second.prompt[: len(shared)] == shared  # whose keys and values the cache has


@pytest.mark.parametrize(
    "fields",
    [
        {"conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]},
        {"prompt": [{"role": "user", "content": "a?"}], "completion": [{"role": "assistant", "content": "b"}]},
        {"messages": [{"role": "user", "content": "a?", "tool_calls": None}, {"role": "assistant", "content": "b"}]},
    ],
)
def test_every_shape_of_a_chat_is_the_same(fields):
    assert texts_and_answers(fields) == [("<user>a?</s>\n<assistant>", "b</s>")]


def test_answers_in_the_prompt_are_not_learnt():
    talk = {"prompt": TALK[:4], "completion": TALK[4:]}
    assert [answer for _, answer in texts_and_answers(talk)] == ANSWERS[1:]
    assert [answer for _, answer in texts_and_answers({"messages": TALK})] == ANSWERS


def test_tools_and_their_calls_are_in_the_words_of_the_template():
    template = "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}" + TEMPLATE
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "clock", "arguments": {}}}]}
    talk = [{"role": "user", "content": "now?"}, call, {"role": "tool", "content": "noon"},
            {"role": "assistant", "content": "It is noon."}]  # fmt: skip
    tools: list[dict[str, Any]] = [{"type": "function", "function": {"name": "clock"}}]
    wanted = [
        ("[clock]<user>now?</s>\n<assistant>", "call clock</s>"),
        ("[clock]<user>now?</s>\n<assistant>call clock</s><tool>noon</s>\n<assistant>", "It is noon.</s>"),
    ]
    assert texts_and_answers({"messages": talk, "tools": tools}, template=template) == wanted
    assert texts_and_answers({"messages": talk, "tools": json.dumps(tools)}, template=template) == wanted


@pytest.mark.parametrize(("end", "wanted"), [("", "b</s>"), ("</s>\n\n", "b</s>"), ("<end>\n", "b<end>")])
def test_an_answer_ends_as_the_template_ends_a_turn_or_else_with_the_end_token(end, wanted):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}" + end + "{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    talk = {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}
    ((_, answer),) = texts_and_answers(talk, template=template)
    assert answer == wanted
    tokenizer = tokenizer_with(template)
    task, texts = chats_of(talk, template=template)
    (example,) = Encoder(tokenizer, task, 64, activated=True).encode(texts).examples
    assert tokenizer.decode(list(example.candidates[0])) == wanted  # and nothing behind


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": TALK[:2], "chosen": [TALK[2]], "rejected": [COLD]},
        {"prompt": TALK[:2], "chosen": TALK[:3], "rejected": [*TALK[:2], COLD]},
        {"prompt": "a great film?", "chosen": TALK[:3], "rejected": [*TALK[:2], COLD]},
        {"chosen": TALK[:3], "rejected": [*TALK[:2], COLD]},
    ],
)  # fmt: skip
def test_chosen_and_rejected_are_two_candidates_of_which_the_first_is_right(fields):
    task, (text,) = chats_of(fields)
    assert (task.name, task.objective, text.label) == ("chat_pair", "cross_entropy", 0)
    assert text.choices == ("warm and clever</s>", "cold</s>")
    assert text.prompt + task.invocation == "<system>Be kind.</s>\n<user>a great film?</s>\n<assistant>"
    tokenizer = tokenizer_with()
    (example,) = Encoder(tokenizer, task, 64, activated=True).encode([text]).examples
    assert [tokenizer.decode(list(candidate)) for candidate in example.candidates] == list(text.choices)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": TALK[:2]}, "a:1: field 'messages' has no message of the assistant"),
        ({"messages": TALK[2:]}, "a:1: field 'messages' begins with an answer"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "a:1: a message of field 'messages' should have a role"),
        ({"messages": TALK, "tools": 3}, "a:1: field 'tools' should be a list of JSON schemas"),
        ({"messages": TALK, "tools": "{"}, "a:1: field 'tools' is not JSON"),
        ({"chosen": TALK[:3], "rejected": TALK}, "a:1: chosen and rejected should each end in one answer"),
        ({"chosen": [TALK[2]], "rejected": [TALK[4]]}, "a:1: chosen and rejected answer nothing"),
    ],
)
def test_what_is_no_chat_to_learn_from_is_refused_with_its_place(fields, message):
    with pytest.raises(InputError, match=message):
        chats_of(fields)


def test_a_template_that_writes_answers_elsewhere_is_refused():
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    with pytest.raises(InputError, match=r"a:1: the chat template does not write this answer.*--chat-template FILE"):
        chats_of({"messages": TALK}, template=template)


def test_a_template_comes_from_a_file(tmp_path):
    file, plain = tmp_path / "chat.jinja", tokenizer_with(None)
    file.write_text(TEMPLATE)
    assert with_template(plain, str(file)).chat_template == TEMPLATE
    assert plain.chat_template is None  # the one given stays as it is
    file.write_text("no template")
    for named, message in ((tmp_path / "none", "cannot read"), (file, "is no Jinja template")):
        with pytest.raises(InputError, match=f"--chat-template: .*{message}"):
            with_template(plain, str(named))


def test_a_run_on_chats_learns_answers_and_predicts_them(opt_dir, tmp_path):
    template = tmp_path / "chat.jinja"
    template.write_text(TEMPLATE)
    talks = [
        {"messages": [{"role": "user", "content": f"{text}?"}, {"role": "assistant", "content": "great"}] * 2}
        for text in ("a film", "a joy", "cold", "my sister", "again", "the cast")
    ]
    with pytest.raises(InputError, match="--chat-template FILE"):
        mezo_finetune(str(opt_dir), talks, output_dir=str(tmp_path / "none"))
    result = mezo_finetune(
        str(opt_dir), talks, talks[:2], output_dir=str(tmp_path / "run"), chat_template=template, num_steps=20,
        eval_steps=20, batch_size=4, learning_rate=0.02, num_threads=1,
    )  # fmt: skip
    assert result.initial is not None
    assert result.final is not None
    assert result.final.loss < 0.7 * result.initial.loss
    assert result.final.num_examples == 4  # two answers of each
    assert result.summary["kv_reuse"] > 0.5  # prompts are computed once, and begin alike
    assert evaluate(adapter=result.adapter).loss == pytest.approx(result.final.loss, rel=1e-5)
    assert len(predict([talks[0], "cold?"], adapter=result.adapter, max_new_tokens=3)) == 2


def test_the_better_of_two_answers_is_learnt(opt_dir, tmp_path):
    pairs = [{"prompt": f"{text}:", "chosen": " great", "rejected": " terrible"} for text in ("a", "b", "c", "d")]
    result = mezo_finetune(
        str(opt_dir), pairs, pairs, output_dir=str(tmp_path / "run"), num_steps=10, eval_steps=10, batch_size=4,
        learning_rate=0.02, num_threads=1,
    )  # fmt: skip
    assert result.final is not None
    assert result.initial is not None
    assert result.final.accuracy == 1.0
    assert result.final.loss < result.initial.loss


def test_texts_without_a_prompt_part_where_they_differ():
    task = TASKS["preference"]
    record = {"chosen": "Human: hi\nBot: good day", "rejected": "Human: hi\nBot: go away"}
    assert task.rows is not None
    assert list(task.rows(record)) == [
        {"prompt": "Human: hi\nBot:", "chosen": " good day", "rejected": " go away", "label": "chosen"}
    ]
    assert choose_task(None, sample=record) == task


def test_demonstrations_and_templates_of_texts_are_not_for_chats(opt_dir, tmp_path):
    for settings, message in (
        ({"num_demonstrations": 1}, "--num-demonstrations does not go with chats"),
        ({"template": "{text}"}, "have no effect on chats"),
        ({"invocation": "x"}, "have no effect on chats"),
    ):
        with pytest.raises(InputError, match=message):
            mezo_finetune(str(opt_dir), [{"messages": TALK}] * 4, output_dir=str(Path(tmp_path) / "x"), **settings)
