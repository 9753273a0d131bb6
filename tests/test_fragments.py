"""Texts that are tokenized apart are joined to what the tokenizer makes of the whole, for all kinds of tokenizers."""

import string
from collections.abc import Callable

import pytest
from tokenizers import ByteLevelBPETokenizer, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tests.conftest import REVIEWS
from zotune.data.fragments import Fragments
from zotune.data.spacing import separator
from zotune.data.task_choice import choose_task
from zotune.data.templates import Encoder
from zotune.data.texts import TextExample
from zotune.errors import InputError

TEXTS = [f"{review['text']} . It was great : Terrible ?\n\nQuestion:\nAnswer:\n\nyes\n\nno" for review in REVIEWS]
SPECIAL = ["<unk>", "<s>", "</s>"]


def wrapped(backend: Tokenizer, marks: str = "$A") -> PreTrainedTokenizerFast:
    backend.post_processor = TemplateProcessing(single=marks, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def metaspace(prepend: str) -> PreTrainedTokenizerFast:
    """SentencePiece's BPE, as of Llama, whose line breaks make tokens of two."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    backend.decoder = decoders.Metaspace(prepend_scheme=prepend)
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=260, special_tokens=SPECIAL, initial_alphabet=list(string.printable))
    )
    return wrapped(backend, "<s> $A")


def byte_level(prefix_space: bool) -> PreTrainedTokenizerFast:
    bpe = ByteLevelBPETokenizer(add_prefix_space=prefix_space)
    bpe.train_from_iterator(TEXTS, vocab_size=320, special_tokens=SPECIAL, show_progress=False)
    return wrapped(bpe._tokenizer, "<s> $A </s>")


def unigram() -> PreTrainedTokenizerFast:
    """SentencePiece's other kind, as of XGLM, to which a line break is a space."""
    backend = Tokenizer(models.Unigram())
    breaks = [normalizers.Replace("\n", " "), normalizers.Replace(Regex(" {2,}"), " ")]
    backend.normalizer = normalizers.Sequence([*breaks, normalizers.Strip(left=False, right=True)])
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    )
    return wrapped(backend)


def word_piece() -> PreTrainedTokenizerFast:
    """As of BERT, to which a line break is nothing, and which has no marks of its own here."""
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL))
    return wrapped(backend)


MAKERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "a space before every part": lambda: metaspace("always"),
    "a space before the first part": lambda: metaspace("first"),
    "no space of its own": lambda: metaspace("never"),
    "bytes": lambda: byte_level(False),
    "bytes behind a space": lambda: byte_level(True),
    "unigram": unigram,
    "word pieces": word_piece,
}


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return MAKERS[request.param]()


INVOCATIONS = (" It was", "\nAnswer:", "\n\nAnswer:", "\n\nAnswer:\n")


def test_the_parts_are_the_tokens_of_the_whole(tokenizer):
    for invocation in INVOCATIONS:
        task = choose_task(None, labels=("yes", "great"), invocation=invocation)
        encoder = Encoder(tokenizer, task, 200, activated=False)
        for text in ("a great film", "I loved the cast . said my sister"):
            (example,) = encoder.encode([TextExample(text, 0, "", "here")]).examples
            for word, candidate in zip(task.label_words, example.candidates, strict=True):
                whole = text + invocation + separator(invocation, word) + word
                joined = [*example.prompt[len(encoder.start) :], *example.invocation, *candidate]
                assert joined == tokenizer(whole, add_special_tokens=False).input_ids


def test_completions_follow_their_prompts(tokenizer):
    task = choose_task("completion")
    for prompt, completion in (
        ("is it great ?\n", "yes"),
        ("is it", " great"),
        ("a film:\n\n", "great"),
        ("a", "\nno"),
    ):
        (example,) = (
            Encoder(tokenizer, task, 64, activated=False)
            .encode([TextExample(prompt, None, completion, "here")])
            .examples
        )
        start = len(Encoder(tokenizer, task, 64, activated=False).start)
        whole = tokenizer(prompt + completion, add_special_tokens=False).input_ids
        parts = [*example.prompt[start:], *example.candidates[0]]
        if prompt.endswith("\n\n"):  # two breaks that end a text are one token to some
            assert tokenizer.decode(parts[:-1]) == tokenizer.decode(whole)
        else:
            assert parts == [*whole, tokenizer.eos_token_id]


def test_a_fragment_that_begins_with_a_line_break_gets_no_space(tokenizer):
    fragment = tokenizer.decode(list(Fragments(tokenizer).encode("\nAnswer:")))
    assert not fragment.startswith(" \n")


def test_a_label_word_that_the_tokenizer_does_not_know_is_refused():
    task = choose_task(None, labels=("yes", "映画"), invocation=" It was")
    with pytest.raises(InputError, match="--labels: '映画' has characters or words that this tokenizer does not know"):
        Encoder(word_piece(), task, 64, activated=False)
