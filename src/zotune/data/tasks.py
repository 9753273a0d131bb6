"""Tasks: the text around an example, its label words, and where its data set lies on the hub.

Classification templates are those of MeZO (Malladi et al., 2023, appendix E; its released `templates.py`), where it has
one for a left-to-right model: SST-2 and SuperGLUE's, and for the other review tasks the same words as for SST-2. MNLI
and SNLI are asked as CB is, and TREC as in Zhao et al., 2021 (arXiv 2102.09690), since MeZO's have a mask: those are
what masked models read (`masked`; Gao et al., 2021, arXiv 2012.15723).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from string import Formatter

from zotune.data import rows
from zotune.data.rows import Rows
from zotune.data.spacing import separator


@dataclass(frozen=True)
class HubSource:
    """A data set on the hub and its splits for training and evaluation."""

    path: str
    train: str = "train"
    evaluation: str = "test"
    revision: str | None = None
    subset: str | None = None
    """What the hub calls a configuration, such as rte of super_glue."""


@dataclass(frozen=True)
class Task:
    """How records become examples.

    `template` is the prompt, with fields in braces; `shorter` stands for it where a field that only `template` has is
    absent or empty; `invocation` is the fixed text that ends the prompt. A task with `labels` (one word per label id,
    `name=word` where the data's labels are strings) is a classification, and so is one with `choice_fields`, whose
    records bring their own options: one field with a list of texts, or one field for each option. Else `completion` is
    the text to learn, with fields in braces. `separator` stands between the invocation and a label word or choice, by
    default a space where one belongs. `rows` makes the fields of the template out of a record as the data set has it.
    With `answers_field`, the field with all right answers, an evaluation generates texts and compares them with those.
    A task without candidates and completion has prompts alone, whose answers a reward judges. Where `is_chat`, prompts
    are the messages of a chat, the invocation is the model's own start of an answer, and what is learnt or compared are
    turns of the assistant. Options that are `whole_answers` end in the end token.

    A masked model reads `masked`, with `{mask}` where the label word belongs, and `masked_words`, one for each label,
    where those differ. A template may have the mask itself; then the task is one for masked models alone. A field in
    `masked` may have a conversion (`MASKED_CONVERSIONS`).
    """

    name: str
    template: str
    invocation: str = ""
    labels: tuple[str, ...] = ()
    choice_fields: tuple[str, ...] = ()
    completion: str = ""
    shorter: str = ""
    separator: str | None = None
    label_field: str = "label"
    hub: HubSource | None = None
    demo: bool = False
    rows: Rows | None = None
    answers_field: str | None = None
    is_chat: bool = False
    whole_answers: bool = False
    masked: str = ""
    masked_words: tuple[str, ...] = ()

    @property
    def has_mask(self) -> bool:
        """Whether the template has the mask in it."""
        return MASK in _names(self.template)

    @property
    def for_masked(self) -> "Task":
        """This task as a masked model reads it: by its own template, or with the mask, and a full stop, behind."""
        if self.has_mask:
            return self
        template = self.masked or self.template + self.invocation + self.spaced("{mask}", self.template) + "."
        words = self.masked_words or self.label_words
        labels = tuple(f"{name}={word}" for name, word in zip(self.label_names, words, strict=True))
        return replace(self, template=template, invocation="", labels=labels)

    @property
    def classifies(self) -> bool:
        """Whether candidates are compared, and not one completion learnt."""
        return bool(self.labels or self.choice_fields)

    @property
    def objective(self) -> str:
        return "cross_entropy" if self.classifies else "token_nll" if self.completion else "reward"

    @property
    def prompts_alone(self) -> "Task":
        """This task where a reward judges what is written behind its prompts."""
        return replace(self, labels=(), choice_fields=(), completion="")

    @property
    def label_words(self) -> tuple[str, ...]:
        return tuple(word for _, word in map(_name_and_word, self.labels))

    @property
    def label_names(self) -> tuple[str, ...]:
        """What the data calls each label: the name of `name=word`, else the word."""
        return tuple(name for name, _ in map(_name_and_word, self.labels))

    def spaced(self, word: str, prompt: str) -> str:
        """A label word or an option as it stands behind a prompt and the invocation."""
        return (separator(prompt + self.invocation, word) if self.separator is None else self.separator) + word

    @property
    def prompt_fields(self) -> tuple[str, ...]:
        """The fields that the prompt is made of, in order."""
        return _fields(self.template)

    @property
    def optional_fields(self) -> tuple[str, ...]:
        """Those that a record need not have."""
        return tuple(name for name in self.prompt_fields if name not in _fields(self.shorter)) if self.shorter else ()

    @property
    def completion_fields(self) -> tuple[str, ...]:
        return _fields(self.completion)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that the texts are made of, in order."""
        return _fields(self.template + self.completion)


MASK = "mask"
"""The field that stands for the mask."""

MASKED_CONVERSIONS: Mapping[str, Callable[[str], str]] = {
    "o": lambda text: text[:-1] if text[-1:] in set(".!?,;:") else text,  # open: without its final mark
    "l": lambda text: text[:1].lower() + text[1:],
}


def _names(template: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for _, name, _, _ in Formatter().parse(template) if name))


def _fields(template: str) -> tuple[str, ...]:
    return tuple(name for name in _names(template) if name != MASK)


def _name_and_word(label: str) -> tuple[str, str]:
    name, _, word = label.partition("=")
    return (name, word) if name and word else (label, label)


def _reviews(name: str, hub: HubSource | None = None, classes: tuple[str, ...] = ()) -> Task:
    """Reviews; `classes` are what the data set calls terrible and great."""
    labels = tuple(f"{name}={word}" for name, word in zip(classes, WORDS, strict=True)) if classes else WORDS
    return Task(name, "{text}", " It was", labels, hub=hub, demo=hub is None, masked="{text} It was {mask}.")


WORDS = ("terrible", "great")
_PAIR = ("chosen", "rejected")
_NLI = ("entailment=Yes", "neutral=Maybe", "contradiction=No")
_INFERENCE = "{premise!o}? {mask}, {hypothesis!l}"  # MeZO's for RoBERTa
_NO_OR_YES = ("False=No", "True=Yes")


def _inference(name: str, hub: HubSource, labels: tuple[str, ...], rows: Rows | None = None) -> Task:
    """Whether a hypothesis follows from a premise, asked as CB is."""
    template = 'Suppose {premise} Can we infer that "{hypothesis}"?'
    return Task(name, template, " Yes, No, or Maybe?\n", labels, hub=hub, rows=rows, masked=_INFERENCE)


def _super_glue(subset: str) -> HubSource:
    return HubSource("aps/super_glue", evaluation="validation", subset=subset)


# The prompts of Stanford's Alpaca (github.com/tatsu-lab/stanford_alpaca), with a line break after the last mark.
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _reviews("demo"),
        _reviews("sst2", HubSource("stanfordnlp/sst2", evaluation="validation"), ("negative", "positive")),
        _reviews("imdb", HubSource("stanfordnlp/imdb"), ("neg", "pos")),
        _reviews("mr", HubSource("cornell-movie-review-data/rotten_tomatoes"), ("neg", "pos")),
        Task(
            "trec",
            template="Question: {text}\n",
            invocation="Answer Type:",
            labels=(
                "ABBR=Abbreviation",
                "ENTY=Entity",
                "DESC=Description",
                "HUM=Person",
                "LOC=Location",
                "NUM=Number",
            ),
            label_field="coarse_label",
            # The data set is a script on its main branch; the hub keeps a parquet copy, which loads without running it.
            hub=HubSource("CogComp/trec", revision="refs/convert/parquet"),
            masked="{mask}: {text}",
            masked_words=("Expression", "Entity", "Description", "Human", "Location", "Number"),
        ),
        Task(
            "sst5",
            template="{text}",
            invocation=" It was",
            labels=("very negative=terrible", "negative=bad", "neutral=okay", "positive=good", "very positive=great"),
            hub=HubSource("SetFit/sst5"),
            masked="{text} It was {mask}.",
        ),
        Task(
            "rte",
            template='{premise}\nDoes this mean that "{hypothesis}" is true?',
            invocation=" Yes or No?\n",
            labels=("entailment=Yes", "not_entailment=No"),
            hub=_super_glue("rte"),
            masked=_INFERENCE,
        ),
        _inference("cb", _super_glue("cb"), ("entailment=Yes", "contradiction=No", "neutral=Maybe")),
        _inference("snli", HubSource("stanfordnlp/snli"), _NLI, rows.labelled),
        _inference("mnli", HubSource("nyu-mll/multi_nli", evaluation="validation_matched"), _NLI),
        Task(
            "boolq",
            template="{passage} {question}",
            invocation="\n",
            labels=_NO_OR_YES,
            hub=_super_glue("boolq"),
            rows=rows.boolq,
        ),
        Task(
            "wsc",
            template='{text}\nIn the previous sentence, does the pronoun "{span2_text}" refer to {span1_text}?',
            invocation=" Yes or No?\n",
            labels=_NO_OR_YES,
            hub=_super_glue("wsc.fixed"),
            rows=rows.wsc,
        ),
        Task(
            "wic",
            template='Does the word "{word}" have the same meaning in these two sentences? Yes, No?\n{sentence1}\n'
            "{sentence2}",
            invocation="\n",
            labels=_NO_OR_YES,
            hub=_super_glue("wic"),
        ),
        Task(
            "multirc",
            template='{paragraph}\nQuestion: {question}\nI found this answer "{answer}".',
            invocation=" Is that correct? Yes or No?\n",
            labels=_NO_OR_YES,
            hub=_super_glue("multirc"),
            rows=rows.multirc,
        ),
        Task(
            "copa",
            template="{premise} {connective}",
            choice_fields=("choice1", "choice2"),
            hub=_super_glue("copa"),
            rows=rows.copa,
        ),
        Task(
            "record",
            template="{passage}",
            invocation="\n-",
            choice_fields=("choices",),
            hub=_super_glue("record"),
            rows=rows.record,
        ),
        Task(
            "gsm8k",
            template="Question: {question}",
            invocation="\nAnswer:",
            completion=" {answer}",
            hub=HubSource("openai/gsm8k", subset="main"),
        ),
        Task(
            "squad",
            template="Title: {title}\nContext: {context}\nQuestion: {question}\n",
            invocation="Answer:",
            completion=" {answer}",
            hub=HubSource("rajpurkar/squad", evaluation="validation"),
            rows=rows.squad,
            answers_field="answers",
        ),
        Task(
            "drop",
            template="Passage: {passage}\nQuestion: {question}\n",
            invocation="Answer:",
            completion=" {answer}",
            hub=HubSource("ucinlp/drop", evaluation="validation"),
            rows=rows.squad,
            answers_field="answers",
        ),
        Task("completion", template="{prompt}", completion="{completion}"),
        Task("alpaca", template=_ALPACA_INPUT, shorter=_ALPACA, completion="{output}"),
        Task("lm", template="", completion="{text}"),
        Task("prompt", template="{prompt}"),
        Task("chat", template="{messages}", completion="{completion}", is_chat=True),
        Task(
            "preference",
            template="{prompt}",
            choice_fields=_PAIR,
            rows=rows.preference,
            whole_answers=True,
        ),
        Task("chat_pair", template="{messages}", choice_fields=_PAIR, is_chat=True, whole_answers=True),
    )
}

# Names that data sets use for the same thing, tried in this order when a task's own name is not there.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "text": ("text", "sentence", "review", "content", "question", "input"),
    "label": ("label", "labels", "coarse_label", "sentiment", "class", "target"),
    "coarse_label": ("coarse_label", "label", "labels"),
    "prompt": ("prompt", "instruction", "input", "question"),
    "completion": ("completion", "response", "output", "answer"),
    "messages": ("messages", "prompt", "conversation", "conversations"),
    "input": ("input", "context"),
    "output": ("output", "response", "completion"),
}
