"""From texts to token ids: what the built-in tasks say, and the cut between prompt, invocation and candidates."""

import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers import PreTrainedTokenizerBase as Tokenizer

from tests.conftest import REVIEWS, SHARED, make_tokenizer
from zotune.data.demo import demo_path
from zotune.data.fragments import Fragments
from zotune.data.records import load_records
from zotune.data.task_choice import choose_task
from zotune.data.tasks import TASKS, Task
from zotune.data.templates import Encoder
from zotune.data.texts import TextExample, to_texts
from zotune.errors import InputError
from zotune.zo.protocol import Example, TokenIds

CLASSIFICATIONS = [name for name, task in TASKS.items() if task.labels]


def with_start(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, now putting its </s> before every text, as that of OPT does."""
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 1)])
    return tokenizer


def like_llama() -> Tokenizer:
    """A tiny tokenizer of the sentencepiece kind: it puts a space of its own before every text."""
    bpe = BackendTokenizer(models.BPE(unk_token="<unk>"))
    space = "\u2581"
    bpe.pre_tokenizer = pre_tokenizers.Split(space, "merged_with_next")  # no token reaches over a space
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend(space), normalizers.Replace(" ", space)])
    bpe.decoder = decoders.Sequence([decoders.Replace(space, " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    bpe.train_from_iterator(
        [f"{review['text']} . It was great : Terrible ? Question" for review in REVIEWS],
        trainers.BpeTrainer(
            vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=list(string.printable),
            max_token_length=8, show_progress=False,
        ),
    )  # fmt: skip
    bpe.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


PLAIN, STARTING = make_tokenizer(), with_start(make_tokenizer())
ENDLESS = make_tokenizer()
ENDLESS.eos_token = None
DEMO = AutoTokenizer.from_pretrained(demo_path("model"))
TOKENIZERS: dict[str, Tokenizer | Path] = {
    "tiny": PLAIN,
    "tiny with start token": STARTING,
    "tiny Llama": like_llama(),
    "demo": DEMO,
    "opt-imdb-4m": SHARED / "models" / "opt-imdb-4m",
    "stories260K": SHARED / "models" / "stories260K",
    "gpt2": SHARED / "tokenizers" / "gpt2",
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    known = TOKENIZERS[request.param]
    if not isinstance(known, Path):
        return known
    if not known.is_dir():
        pytest.skip(f"{known} is not at hand")
    return AutoTokenizer.from_pretrained(known)


def prompt_of(task: Task, text: str) -> TextExample:
    return TextExample(
        task.template.format_map(dict.fromkeys(task.prompt_fields, text)), label=0, completion="", where="here"
    )


def whole_text(task: Task, prompt: TextExample, word: str) -> str:
    """What a writer would write: a space before the word, but not at the beginning of a line."""
    before = prompt.prompt + task.invocation
    return f"{before}{word}" if before.endswith("\n") else f"{before} {word}"


def encode_one(tokenizer: Tokenizer, task: Task, text: TextExample, max_length: int = 2048) -> Example:
    (example,) = Encoder(tokenizer, task, max_length, activated=bool(task.invocation)).encode([text]).examples
    return example


def decode(tokenizer: Tokenizer, token_ids: TokenIds) -> str:
    return str(tokenizer.decode(list(token_ids)))


def size(example: Example) -> int:
    return len(example.prompt) + len(example.invocation) + max(map(len, example.candidates))


# ---- what the built-in tasks say

SNAPSHOTS: dict[str, tuple[dict[str, Any], str, str, tuple[str, ...]]] = {
    "prompt": ({"prompt": "Say it."}, "Say it.", "", ("",)),
    "demo": ({"text": " A fine film. ", "label": 1}, "A fine film.", " It was", (" terrible", " great")),
    "sst2": ({"sentence": "a fine film ", "label": 1}, "a fine film", " It was", (" terrible", " great")),
    "imdb": ({"text": "A fine film.", "label": 1}, "A fine film.", " It was", (" terrible", " great")),
    "mr": ({"text": "a fine film .", "label": 1}, "a fine film .", " It was", (" terrible", " great")),
    "trec": (
        {"text": "Who wrote it ?", "coarse_label": 3, "fine_label": 40}, "Question: Who wrote it ?\n", "Answer Type:",
        (" Abbreviation", " Entity", " Description", " Person", " Location", " Number"),
    ),
    "completion": ({"prompt": "Two and two\n", "completion": "is four."}, "Two and two\n", "", ("is four.</s>",)),
    "alpaca": (
        {"instruction": "Name a city.", "input": "In France", "output": "Paris"},
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nName a city.\n\n### Input:\nIn France"
        "\n\n### Response:\n",
        "", ("Paris</s>",),
    ),
    "lm": ({"text": "Once upon a time"}, "", "", ("Once upon a time</s>",)),
}  # fmt: skip

REVIEW_CANDIDATES = ((1620,), (602,))
TOKEN_IDS = {  # of the same records: prompt, invocation, candidates
    "demo": ((1, 36, 1831, 347, 17), (464, 340), REVIEW_CANDIDATES),
    "sst2": ((1, 68, 1831, 347), (464, 340), REVIEW_CANDIDATES),
    "imdb": ((1, 36, 1831, 347, 17), (464, 340), REVIEW_CANDIDATES),
    "mr": ((1, 68, 1831, 347, 1665), (464, 340), REVIEW_CANDIDATES),
    "trec": (
        (1, 52, 88, 443, 330, 29, 2584, 3224, 314, 5286, 202),
        (3497, 2653, 270, 5647, 392, 29),
        ((3233, 69, 266, 89, 7348), (495, 531, 522), (2851, 70, 974, 330), (441, 919), (440, 900, 466), (476, 6573)),
    ),
    "completion": ((1, 55, 90, 82, 287, 729, 202), (), ((269, 2193, 17, 1),)),
    "alpaca": (tuple(DEMO(SNAPSHOTS["alpaca"][1]).input_ids), (), (tuple(DEMO("\nParis</s>").input_ids[2:]),)),
    "prompt": ((1, *DEMO("Say it.", add_special_tokens=False).input_ids), (), ((),)),
    "lm": ((1,), (), ((50, 5590, 2510, 261, 540, 1),)),
}


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_texts_of_the_built_in_tasks(name):
    record, prompt, invocation, candidates = SNAPSHOTS[name]
    (text,) = to_texts(load_records([record], "--data"), TASKS[name], {})
    example = encode_one(DEMO, TASKS[name], text)
    label = record.get("label", record.get("coarse_label"))
    assert decode(DEMO, example.prompt) == f"</s>{prompt}"
    assert decode(DEMO, example.invocation) == invocation
    assert tuple(decode(DEMO, candidate) for candidate in example.candidates) == candidates
    assert example.label == label
    assert (example.prompt, example.invocation, example.candidates) == TOKEN_IDS[name]


# ---- the cut

TEXTS = [
    *[review["text"] for review in REVIEWS[:6]],
    "it ends in a full stop.", "in an ellipsis ...", "in a quote\"", "in a number 10", "in a hyphen-", "in (brackets)",
    "with a\nline break", "with  two   spaces", "mañana 映画 🎬", "x",
]  # fmt: skip


@pytest.mark.parametrize("name", CLASSIFICATIONS)
def test_tokenizing_apart_equals_tokenizing_the_whole(tokenizer, name):
    task = TASKS[name]
    for text in TEXTS:
        prompt = prompt_of(task, text)
        example = encode_one(tokenizer, task, prompt)
        for word, candidate in zip(task.label_words, example.candidates, strict=True):
            whole = tokenizer(whole_text(task, prompt, word)).input_ids
            assert list(example.prompt + example.invocation + candidate) == whole


@settings(max_examples=60)
@given(text=st.text(min_size=1, max_size=40), name=st.sampled_from(CLASSIFICATIONS))
def test_the_cut_is_clean_after_any_text(text, name):
    task, text = TASKS[name], text.strip()
    assume(text)
    for tokenizer in (STARTING, DEMO):
        prompt = prompt_of(task, text)
        example = encode_one(tokenizer, task, prompt)
        whole = tokenizer(whole_text(task, prompt, task.label_words[0])).input_ids
        assert list(example.prompt + example.invocation + example.candidates[0]) == whole


def test_label_words_of_several_tokens_share_the_prompt(tokenizer):
    task = choose_task("sst2", labels=("not worth watching", "worth watching twice"))
    one_word, several = (encode_one(tokenizer, t, prompt_of(t, "A film.")) for t in (TASKS["sst2"], task))
    assert (several.prompt, several.invocation) == (one_word.prompt, one_word.invocation)
    assert all(len(candidate) > 2 for candidate in several.candidates)
    for word, candidate in zip(task.labels, several.candidates, strict=True):
        assert decode(tokenizer, several.invocation + candidate).strip() == f"It was {word}"


@pytest.mark.parametrize("invocation", [" It was", " It was ", "\nIt was\n"])
@pytest.mark.parametrize("word", ["great", " great"])
def test_one_space_at_most_stands_before_a_label_word(invocation, word):
    task = choose_task("sst2", invocation=invocation, labels=("bad", word))
    example = encode_one(DEMO, task, prompt_of(task, "A film."))
    ended = invocation[-1:].isspace() and not word.startswith(" ")
    expected = f"A film.{invocation}{'great' if ended else ' great'}"
    assert decode(DEMO, (example.prompt + example.invocation + example.candidates[1])[1:]) == expected


def test_a_fragment_gets_no_space_or_special_token_of_its_own(tokenizer):
    for fragment in ("great", " great", "Answer", ".", "\n"):
        ids = Fragments(tokenizer).encode(fragment)
        before = tuple(tokenizer("A b", add_special_tokens=False).input_ids)
        assert decode(tokenizer, before + ids) == "A b" + fragment
    assert Fragments(tokenizer).encode("") == ()


def test_a_completion_ends_with_the_end_of_text_and_follows_its_prompt():
    example = encode_one(DEMO, TASKS["completion"], TextExample("Two and two", None, " is four", "here"))
    (candidate,) = example.candidates
    assert candidate[-1] == DEMO.eos_token_id
    assert decode(DEMO, example.prompt + candidate) == "</s>Two and two is four</s>"
    assert example.label is None


# ---- the invocation switches an adapter on where it stands last


def test_a_prompt_may_contain_the_invocation():
    example = encode_one(DEMO, TASKS["demo"], prompt_of(TASKS["demo"], "It was long. It was good."))
    assert decode(DEMO, example.prompt) == "</s>It was long. It was good."
    completion = choose_task("completion", invocation=" So:")
    assert encode_one(DEMO, completion, TextExample("So: so: So:", None, " yes", "here")).candidates


def test_a_candidate_may_not_contain_the_invocation():
    with pytest.raises(InputError, match=r"--labels: 'good\. It was' contains the invocation ' It was'"):
        Encoder(DEMO, choose_task("sst2", labels=("bad", "good. It was")), 64, activated=True)
    completion = choose_task("completion", invocation=" So:")
    with pytest.raises(InputError, match="file:3: the completion contains the invocation ' So:'"):
        encode_one(DEMO, completion, TextExample("a", None, " b So: c", "file:3"))


def test_a_candidate_may_not_begin_a_second_invocation_within_the_first():
    task = choose_task("sst2", invocation=" so so", labels=("bad", "so so"))
    with pytest.raises(InputError, match="'so so' contains the invocation"):
        Encoder(DEMO, task, 64, activated=True)
    with pytest.raises(InputError, match="'so' contains the invocation"):
        Encoder(DEMO, choose_task("sst2", invocation=" so so", labels=("bad", "so")), 64, activated=True)


def test_everywhere_candidates_may_contain_anything():
    task = choose_task("sst2", labels=("bad", "good. It was"))
    assert len(Encoder(DEMO, task, 64, activated=False).words) == 2


# ---- lengths

LONG = " and ".join(review["text"] for review in REVIEWS)


@pytest.mark.parametrize("name", [*CLASSIFICATIONS, "completion"])
def test_truncation_takes_the_left_of_the_prompt_only(tokenizer, name):
    task = TASKS[name]
    text = prompt_of(task, LONG) if task.labels else TextExample(LONG, None, " so be it", "here")
    whole = encode_one(tokenizer, task, text, max_length=10_000)
    start = Encoder(tokenizer, task, 64, activated=False).start
    encoded = Encoder(tokenizer, task, 40, activated=bool(task.invocation)).encode([text])
    (cut,) = encoded.examples
    assert (cut.invocation, cut.candidates, cut.label) == (whole.invocation, whole.candidates, whole.label)
    kept = len(cut.prompt) - len(start)
    assert cut.prompt == start + whole.prompt[-kept:]
    assert size(cut) == 40
    assert encoded.num_truncated == 1
    assert Encoder(tokenizer, task, size(whole), activated=False).encode([text]).num_truncated == 0


WORDS = st.lists(st.sampled_from(LONG.split()), min_size=1, max_size=40).map(" ".join)


@given(
    tokenizer=st.sampled_from([PLAIN, STARTING]), name=st.sampled_from(["demo", "trec", "completion", "lm"]),
    text=WORDS, completion=WORDS, max_length=st.integers(2, 60),
)  # fmt: skip
def test_no_example_is_longer_than_max_length(tokenizer, name, text, completion, max_length):
    task = TASKS[name]
    record = {"text": text, "label": 0, "prompt": text, "completion": completion}
    (example_text,) = to_texts(load_records([record], "--data"), task, {})
    encoder = Encoder(tokenizer, task, max_length, activated=bool(task.invocation))
    body = (*Fragments(tokenizer).encode(completion), tokenizer.eos_token_id)
    needed = len(encoder.start) + 1 + len(encoder.invocation) + max(map(len, encoder.words or (body,)))
    refused = name != "lm" and needed > max_length
    if refused:
        with pytest.raises(InputError, match=f"--max-length {max_length}"):
            encoder.encode([example_text])
    else:
        examples = encoder.encode([example_text]).examples
        assert all(size(example) <= max_length for example in examples)
        assert all(len(example.prompt) > len(encoder.start) or name == "lm" for example in examples)


@given(tokenizer=st.sampled_from([PLAIN, STARTING]), text=WORDS, max_length=st.integers(2, 30))
def test_plain_text_is_cut_in_blocks_that_predict_every_token_once(tokenizer, text, max_length):
    token_ids = (*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id)
    encoder = Encoder(tokenizer, TASKS["lm"], max_length, activated=False)
    examples = encoder.encode([TextExample("", None, text, "here")]).examples
    predicted = tuple(token for example in examples for token in example.candidates[0])
    assert predicted == (token_ids if encoder.start else token_ids[1:])
    assert {example.prompt for example in examples} == {encoder.start or token_ids[:1]}
    assert all(len(example.candidates[0]) == max_length - 1 for example in examples[:-1])
    assert all(example.invocation == () for example in examples)


def test_a_text_of_one_token_has_nothing_to_predict_without_a_start_or_an_end_token():
    (letter,) = PLAIN("x").input_ids
    with pytest.raises(InputError, match="file:1: the text has 1 tokens; at least 2 are needed"):
        Encoder(ENDLESS, TASKS["lm"], 8, activated=False).encode([TextExample("", None, "x", "file:1")])
    for tokenizer, prompt, candidate in ((PLAIN, (letter,), (1,)), (STARTING, (1,), (letter, 1))):
        example = encode_one(tokenizer, TASKS["lm"], TextExample("", None, "x", "here"))
        assert (example.prompt, example.candidates) == (prompt, (candidate,))


def test_examples_stand_in_the_order_of_the_texts():
    texts = [prompt_of(TASKS["demo"], review["text"]) for review in REVIEWS]
    encoded = Encoder(DEMO, TASKS["demo"], 64, activated=True).encode(texts)
    assert [decode(DEMO, example.prompt[1:]) for example in encoded.examples] == [text.prompt for text in texts]
    assert encoded.num_truncated == 0
