"""Start tokens, end tokens, the space before a label word, and tokens that the model has not: against transformers."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from tests.conftest import make_model, make_tokenizer
from tests.test_templates import like_llama, with_start
from zotune import evaluate, mezo_finetune, predict
from zotune.data.spacing import separator
from zotune.data.task_choice import choose_task
from zotune.data.tasks import TASKS
from zotune.data.templates import Encoder
from zotune.data.texts import TextExample
from zotune.errors import InputError
from zotune.zo.protocol import Example

START, END = 1, 1  # of make_tokenizer: </s> is both


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose tokenizer puts a start token before a text."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    make_model("llama").save_pretrained(folder)
    with_start(make_tokenizer()).save_pretrained(folder)
    return folder


def nll(folder: Path, token_ids: list[int], num_given: int) -> float:
    """The mean negative log-likelihood of all tokens behind the first ones, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        log_probs = model(torch.tensor([token_ids]), use_cache=False).logits[0].log_softmax(-1)
    return -float(np.mean([log_probs[i - 1, token_ids[i]] for i in range(num_given, len(token_ids))]))


def encode_one(tokenizer: Any, task: str, prompt: str, completion: str) -> Example:
    text = TextExample(prompt, None, completion, "here")
    (example,) = Encoder(tokenizer, TASKS[task], 64, activated=False).encode([text]).examples
    return example


# ---- start and end


def test_a_prompt_that_has_the_start_token_gets_no_second(llama):
    tokenizer = AutoTokenizer.from_pretrained(llama)
    row = {"prompt": "a great film", "completion": " said my sister"}
    ids = tokenizer("</s>a great film said my sister</s>", add_special_tokens=False).input_ids
    right = nll(llama, ids, 1 + len(tokenizer("a great film", add_special_tokens=False).input_ids))
    for prompt in ("a great film", "</s>a great film"):
        found = evaluate([row | {"prompt": prompt}], model=str(llama), num_threads=1)  # the fields tell the task
        assert found.loss == pytest.approx(right, abs=1e-5)


@pytest.mark.parametrize("make", [lambda: with_start(make_tokenizer()), like_llama], ids=["BPE", "like Llama"])
def test_one_start_token_stands_before_every_kind_of_text(make):
    tokenizer = make()
    start = tokenizer.bos_token
    for task, written in (("completion", ("a film", " yes")), ("lm", ("", "a film"))):
        prompt, completion = written
        first = f"{start}{prompt}" if prompt else "", completion if prompt else f"{start}{completion}"
        once = encode_one(tokenizer, task, *first)
        assert (once.prompt + once.candidates[0]).count(tokenizer.bos_token_id) == (
            2 if tokenizer.bos_token_id == tokenizer.eos_token_id else 1
        )
        assert once.prompt[0] == tokenizer.bos_token_id
    twice = encode_one(tokenizer, "completion", f"{start}{start}a film", " yes")  # somebody wants it so
    assert twice.prompt[:2] == (tokenizer.bos_token_id,) * 2


def test_what_is_cut_on_the_left_is_the_text_and_not_its_start_token():
    tokenizer = with_start(make_tokenizer())
    example = (
        Encoder(tokenizer, TASKS["completion"], 12, activated=False)
        .encode([TextExample("</s>" + "a great film " * 9, None, " yes", "here")])
        .examples[0]
    )
    assert example.prompt[0] == START
    assert START not in example.prompt[1:]
    assert len(example.prompt + example.candidates[0]) == 12


def test_an_end_token_stands_once_at_the_end():
    tokenizer = make_tokenizer()
    for task, prompt in (("completion", "a film"), ("lm", "")):
        without, written = (encode_one(tokenizer, task, prompt, text) for text in ("great", "great</s>"))
        assert without == written
        assert without.candidates[0][-1] == END
        assert (without.prompt + without.candidates[0]).count(END) == 1


def test_the_end_of_a_plain_text_is_learned(llama):
    tokenizer = AutoTokenizer.from_pretrained(llama)
    found = evaluate([{"text": "a great film"}], model=str(llama), task="lm", num_threads=1)
    assert found.loss == pytest.approx(nll(llama, [*tokenizer("a great film").input_ids, END], 1), abs=1e-5)


def test_prediction_stops_at_every_end_token_of_the_model(llama, tmp_path):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(llama), AutoTokenizer.from_pretrained(llama)
    prompt = tokenizer("a great film", return_tensors="pt")
    free = model.generate(**prompt, max_new_tokens=10, do_sample=False, eos_token_id=[], pad_token_id=0)
    written = free[0, prompt.input_ids.shape[1] :].tolist()
    (whole,) = predict(["a great film"], model=str(llama), task="completion", max_new_tokens=10, num_threads=1)
    assert whole == tokenizer.decode(written[: written.index(END)] if END in written else written)
    second = written[3]
    for ends in ([END, second], second):
        model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=0)
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        found = predict(["a great film"], model=str(tmp_path), task="completion", max_new_tokens=10, num_threads=1)
        assert found == [tokenizer.decode(written[: written.index(second)])]


# ---- the space before a label word


@pytest.mark.parametrize(
    ("before", "word", "between"),
    [
        ("It was", "great", " "), ("Answer Type:", "Person", " "), ("it is so.", "yes", " "), ("(as said)", "A", " "),
        ('he said "so"', "A", " "), ("it's", "A", " "), ("{text}", "great", " "), ("so -", "A", " "), ("10", "9", " "),
        ("감정은", "좋다", " "), ("->", "A", " "), ("", "A", ""), ("It was ", "great", ""), ("It was", " great", ""),
        ("\n", "A", ""), ("Answer: (", "A", ""), ("[", "A", ""), ("Score=", "1", ""), ('Label: "', "A", ""),
        ("('", "A", ""), ("«", "A", ""), ("¿", "A", ""), ("a/", "b", ""), ("#", "tag", ""),
        ("总体来说很", "好", ""), ("答案\uff1a", "A", ""),
        ("{text}", "好", ""),
        ("とても", "良い", ""), ("ดี", "มาก", ""),
    ],
)  # fmt: skip
def test_a_space_stands_before_a_word_where_a_writer_would_put_one(before, word, between):
    assert separator(before, word) == between


def decoded_words(labels: tuple[str, ...], invocation: str, **options: Any) -> tuple[str, ...]:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["Answer: (A", "总体来说很好"] * 9, vocab_size=300, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer)
    task = choose_task(None, labels=labels, invocation=invocation, **options)
    encoder = Encoder(tokenizer, task, 64, activated=False)
    return tuple(str(tokenizer.decode(list(encoder.invocation + word))) for word in encoder.words)


def test_label_words_are_written_as_they_belong_or_as_they_are_asked_for():
    assert decoded_words(("差", "好"), "总体来说很") == ("总体来说很差", "总体来说很好")
    assert decoded_words(("A", "B"), " Answer: (") == (" Answer: (A", " Answer: (B")
    assert decoded_words(("A", " B"), " Answer:") == (" Answer: A", " Answer: B")
    assert decoded_words(("A", "B"), " <label>", separator="") == (" <label>A", " <label>B")
    assert decoded_words(("A", "B"), " Answer: (", separator=" ") == (" Answer: ( A", " Answer: ( B")
    with pytest.raises(InputError, match="--label-separator: task completion has no label words"):
        choose_task("completion", separator="")


def test_the_separator_that_a_run_was_trained_with_is_that_of_its_adapter(opt_dir, reviews_file, tmp_path):
    options: dict[str, Any] = {"model": str(opt_dir), "labels": ("bad", "good"), "invocation": " is", "num_threads": 1}
    run = mezo_finetune(
        train_data=str(reviews_file), label_separator="", num_steps=1, batch_size=2, directions=1,
        output_dir=str(tmp_path / "run"), **options,
    )  # fmt: skip
    assert run.final is not None
    own, given, spaced = (
        evaluate(str(reviews_file), adapter=run.adapter, label_separator=separator).loss
        for separator in (None, "", " ")
    )
    assert own == given != spaced


# ---- tokens that the model has not


def test_a_token_beyond_the_embeddings_is_refused_where_it_stands(llama, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.add_tokens(["<movie>"])
    make_model("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model: dict[str, Any] = {"model": str(tmp_path), "num_threads": 1}
    good, odd = {"text": "a film", "label": 1}, {"text": "a <movie>", "label": 0}
    said = "the token '<movie>' has the number 320, and the model has embeddings for 320 tokens"
    calls: list[tuple[str, Callable[[], Any]]] = [
        (r"--eval-data\[1\]", lambda: evaluate([good, odd], task="demo", **model)),
        (r"--data\[1\]", lambda: predict([good, odd], task="demo", **model)),
        (r"--data\[0\]", lambda: predict(["<movie>"], task="completion", max_new_tokens=4, **model)),
        (r"--eval-data\[0\]", lambda: evaluate([{"text": "a <movie>"}], task="lm", **model)),
        (r"--eval-data\[0\]", lambda: evaluate([{"prompt": "a", "completion": "<movie>"}], task="completion", **model)),
        ("--labels", lambda: evaluate([good], labels=("bad", "<movie>"), **model)),
        ("--invocation", lambda: evaluate([good], task="demo", invocation="<movie>", **model)),
        (r"--train-data\[1\]", lambda: mezo_finetune(
            train_data=[good, odd], eval_data=[good], task="demo", output_dir=str(tmp_path / "run"), **model)),
    ]  # fmt: skip
    for place, call in calls:
        with pytest.raises(InputError, match=f"^{place}: {said}"):
            call()
    assert not (tmp_path / "run").exists()
    assert evaluate([good], task="demo", **model).num_examples == 1  # a token that is not used does no harm


# ---- values that JSON has not


def test_records_from_python_may_hold_what_json_has_not(opt_dir, reviews_file, tmp_path):
    rows = [
        {"text": f"a film of {year}", "label": np.int64(year % 2), "when": datetime.date(year, 1, 1), "raw": b"\xff",
         "array": np.arange(2), "flag": np.bool_(True), "map": {"set": {1}}}
        for year in range(2000, 2006)
    ]  # fmt: skip
    folder = tmp_path / "run"
    mezo_finetune(str(opt_dir), rows, rows, task="demo", num_steps=1, batch_size=2, directions=1, num_threads=1,
                  output_dir=str(folder))  # fmt: skip
    first = (folder / "train_data.jsonl").read_text().splitlines()[0]
    assert '"label": 0, "when": "2000-01-01"' in first
    assert '"array": [0, 1], "flag": true' in first


@pytest.mark.parametrize("odd", [{(1, 2): "x"}, {"n": 10**5000}, {"deep": None}], ids=["a key", "a number", "itself"])
def test_a_record_that_no_file_could_hold_is_refused_before_anything_is_written(odd, opt_dir, tmp_path):
    if "deep" in odd:
        odd["deep"] = odd
    rows = [{"text": "a film", "label": 1}, {"text": "a film", "label": 0} | odd]
    with pytest.raises(InputError, match=r"^--train-data\[1\]: a record must be an object that JSON can hold: "):
        mezo_finetune(str(opt_dir), rows, task="demo", output_dir=str(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []
