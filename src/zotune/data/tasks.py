"""Tasks: the text around an example, its label words, and where its data set lies on the hub.

Classification templates are those of MeZO (Malladi et al., 2023, appendix E; its released `templates.py`), where it has
one for a left-to-right model: SST-2, and for the other review tasks the same words. TREC is asked as in
Zhao et al., 2021 (arXiv 2102.09690), since MeZO's has the mask in front.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter


@dataclass(frozen=True)
class HubSource:
    """A data set on the hub and its splits for training and evaluation."""

    path: str
    train: str = "train"
    evaluation: str = "test"
    revision: str | None = None


@dataclass(frozen=True)
class Task:
    """How records become examples.

    `template` is the prompt, with fields in braces; `shorter` stands for it where a field that only `template` has is
    absent or empty; `invocation` is the fixed text that ends the prompt. A task with `labels` (one word per label id,
    `name=word` where the data's labels are strings) is a classification; else `completion` is the text to learn, with
    fields in braces. `separator` stands between the invocation and a label word; None: a space where one belongs.
    """

    name: str
    template: str
    invocation: str = ""
    labels: tuple[str, ...] = ()
    completion: str = ""
    shorter: str = ""
    separator: str | None = None
    label_field: str = "label"
    hub: HubSource | None = None
    demo: bool = False

    @property
    def objective(self) -> str:
        return "cross_entropy" if self.labels else "token_nll"

    @property
    def label_words(self) -> tuple[str, ...]:
        return tuple(word for _, word in map(_name_and_word, self.labels))

    @property
    def label_names(self) -> tuple[str, ...]:
        """What the data calls each label: the name of `name=word`, else the word."""
        return tuple(name for name, _ in map(_name_and_word, self.labels))

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


def _fields(template: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for _, name, _, _ in Formatter().parse(template) if name))


def _name_and_word(label: str) -> tuple[str, str]:
    name, _, word = label.partition("=")
    return (name, word) if name and word else (label, label)


def _reviews(name: str, hub: HubSource | None = None, classes: tuple[str, ...] = ()) -> Task:
    """Reviews; `classes` are what the data set calls terrible and great."""
    labels = tuple(f"{name}={word}" for name, word in zip(classes, WORDS, strict=True)) if classes else WORDS
    return Task(name, "{text}", " It was", labels, hub=hub, demo=hub is None)


WORDS = ("terrible", "great")


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
        ),
        Task("completion", template="{prompt}", completion="{completion}"),
        Task("alpaca", template=_ALPACA_INPUT, shorter=_ALPACA, completion="{output}"),
        Task("lm", template="", completion="{text}"),
    )
}

# Names that data sets use for the same thing, tried in this order when a task's own name is not there.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "text": ("text", "sentence", "review", "content", "question", "input"),
    "label": ("label", "labels", "coarse_label", "sentiment", "class", "target"),
    "coarse_label": ("coarse_label", "label", "labels"),
    "prompt": ("prompt", "instruction", "input", "question"),
    "completion": ("completion", "response", "output", "answer"),
    "input": ("input", "context"),
    "output": ("output", "response", "completion"),
}
