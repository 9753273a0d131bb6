"""Tasks: the text around an example, its label words, and where its data set lies on the hub.

Classification templates are those of MeZO (Malladi et al., 2023, appendix E; its released `templates.py`), where it has
one for a left-to-right model: SST-2, and for the other review tasks the same words. TREC is asked as in
Zhao et al., 2021 (arXiv 2102.09690), since MeZO's has the mask in front.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import Any

from zotune.errors import InputError


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

    `template` is the prompt, with fields in braces; `invocation` the fixed text that ends it. A task with `labels`
    (one word per label id, `name=word` where the data's labels are strings) is a classification; else `completion`
    is the text to learn, with fields in braces.
    """

    name: str
    template: str
    invocation: str = ""
    labels: tuple[str, ...] = ()
    completion: str = ""
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
    def fields(self) -> tuple[str, ...]:
        """The fields that the texts are made of, in order."""
        found = [name for _, name, _, _ in Formatter().parse(self.template + self.completion) if name]
        return tuple(dict.fromkeys(found))


def _name_and_word(label: str) -> tuple[str, str]:
    name, _, word = label.partition("=")
    return (name, word) if name and word else (label, label)


def _reviews(name: str, hub: HubSource | None = None) -> Task:
    return Task(name, "{text}", " It was", ("terrible", "great"), hub=hub, demo=hub is None)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _reviews("demo"),
        _reviews("sst2", HubSource("stanfordnlp/sst2", evaluation="validation")),
        _reviews("imdb", HubSource("stanfordnlp/imdb")),
        _reviews("mr", HubSource("cornell-movie-review-data/rotten_tomatoes")),
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
}


def choose_task(
    name: str | None,
    *,
    template: str | None = None,
    invocation: str | None = None,
    labels: Sequence[str] = (),
    sample: Mapping[str, Any] | None = None,
) -> Task:
    """The task of a run: a built-in one, changed by the options given, or one made of the options alone.

    Args:
        sample: the first record of the data, to choose by where no option does.

    Raises:
        InputError: unknown name, or options that do not make a task.
    """
    if name is not None:
        if name not in TASKS:
            close = difflib.get_close_matches(name, TASKS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise InputError(f"--task: there is no task {name!r}{hint} (tasks: {', '.join(TASKS)})")
        task = TASKS[name]
    elif labels:
        task = Task("classification", template="{text}")
    elif sample is not None:
        task = _detect(sample)
    else:
        task = TASKS["demo"]
    if labels and task.completion and name is not None:
        raise InputError(f"--labels: task {name} has no labels; leave out --task for a classification of your own")
    changes: dict[str, Any] = {
        "template": template,
        "invocation": invocation,
        "labels": tuple(labels) or None,
    }
    task = replace(task, **{key: value for key, value in changes.items() if value is not None})
    _check(task)
    return task


def _detect(sample: Mapping[str, Any]) -> Task:
    def has(role: str) -> bool:
        return any(alias in sample for alias in ALIASES[role])

    if "prompt" in sample and "completion" in sample:
        return TASKS["completion"]
    if has("text") and has("label"):
        raise InputError(
            "--labels: the data has texts with labels; give a word for each label id, e.g. "
            "--labels terrible great --invocation ' It was', or a built-in --task"
        )
    if has("prompt") and has("completion"):
        return TASKS["completion"]
    if has("text"):
        return TASKS["lm"]
    raise InputError(
        f"--task: cannot tell the task from the fields {', '.join(sample)}; expected prompt and completion, or text "
        "(with label); name them with --fields, e.g. --fields text=body label=stars"
    )


def _check(task: Task) -> None:
    try:
        pieces = [piece for piece in Formatter().parse(task.template) if piece[1] is not None]
    except ValueError as error:
        raise InputError(f"--template: {task.template!r} is not a template: {error}") from error
    for _, name, form, conversion in pieces:
        if not (name or "").isidentifier() or form or conversion:
            raise InputError(f"--template: fields are names in braces such as {{text}}, got {task.template!r}")
    if set("{}") & set(task.invocation):
        raise InputError(f"--invocation: {task.invocation!r} must be fixed text, without fields in braces")
    if task.invocation and not task.template:
        raise InputError(
            f"--invocation: task {task.name} has no prompt that {task.invocation!r} could end; leave it out"
        )
    if task.labels and not task.fields:
        raise InputError(f"--template: {task.template!r} uses no field of the data, such as {{text}}")
    if len(task.labels) == 1:
        raise InputError(f"--labels: a classification needs two labels or more, got {task.labels[0]!r}")
    for what, values in (("names", task.label_names), ("words", task.label_words)):
        double = [value for value in dict.fromkeys(values) if values.count(value) > 1]
        if double:
            raise InputError(f"--labels: {what} must differ, got {double[0]!r} twice")
    for index, label in enumerate(task.labels):
        if not label.strip():
            raise InputError(f"--labels: {label!r} is no word")
        if label.lstrip("-").isdigit() and label != str(index):
            raise InputError(
                f"--labels: a {label} in the data could be this word or a label id; give names, such as {label}={label}"
            )
