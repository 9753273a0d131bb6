"""Which task a run has: the one that the user names, changes or spells out, or the one that the data's fields tell.

What the options make of a task is checked here, before anything is read or loaded for it.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from string import Formatter
from typing import Any

from zotune.data.tasks import ALIASES, MASK, TASKS, Task
from zotune.errors import InputError
from zotune.values import is_torn


def choose_task(
    name: str | None,
    *,
    template: str | None = None,
    invocation: str | None = None,
    labels: Sequence[str] = (),
    choice_fields: Sequence[str] = (),
    separator: str | None = None,
    sample: Mapping[str, Any] | None = None,
    for_reward: bool = False,
) -> Task:
    """The task of a run: a built-in one, changed by the options given, or one made of the options alone.

    Args:
        separator: what stands between the invocation and a label word; None: a space where one belongs.
        sample: the first record of the data, to choose by where no option does.
        for_reward: whether a reward judges what is written behind the prompts, so that there is nothing else to learn.

    Raises:
        InputError: unknown name, or options that do not make a task.
    """
    if name is not None:
        if name not in TASKS:
            close = difflib.get_close_matches(name, TASKS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise InputError(f"--task: there is no task {name!r}{hint} (tasks: {', '.join(TASKS)})")
        task = TASKS[name]
    elif labels or choice_fields:
        task = Task("classification", template="{text}")
    elif sample is not None:
        task = _detect_prompts(sample) if for_reward else _detect(sample)
    else:
        task = TASKS["demo"]
    if labels and choice_fields:
        raise InputError(
            "--choice-fields: the options are those of --labels, or each record's own; give one of the two"
        )
    if name is not None and task.completion and labels:
        raise InputError(f"--labels: task {name} has no labels; leave out --task for a classification of your own")
    if name is not None and task.completion and choice_fields:
        raise InputError(f"--choice-fields: task {name} learns its text, and compares no options; leave out --task")
    if separator is not None and not (labels or choice_fields or task.classifies):
        raise InputError(
            f"--label-separator: task {task.name} has no label words that {separator!r} could stand before"
        )
    masks = template is not None and f"{{{MASK}}}" in template
    if masks and invocation:
        raise InputError(
            f"--invocation: the template says where the mask stands ({template!r}), so that {invocation!r} cannot end "
            "the prompt; write it into --template"
        )
    changes: dict[str, Any] = {
        "template": template,
        "invocation": "" if masks else invocation,
        "masked": None if template is None and invocation is None else "",
        "masked_words": () if labels or choice_fields else None,
        "labels": () if choice_fields else tuple(labels) or None,
        "choice_fields": () if labels else tuple(choice_fields) or None,
        "separator": separator,
        "shorter": None if template is None else "",
    }
    task = replace(task, **{key: value for key, value in changes.items() if value is not None})
    _check(task)
    if not for_reward:
        return task
    if not task.template:
        raise InputError(f"--reward: task {task.name} has no prompts that a text could be written behind")
    return task.prompts_alone


def check_has_labels(option: str, task: Task) -> None:
    """Refuse an option that needs labels which examples share.

    Raises:
        InputError: with the option and the task.
    """
    if not task.labels:
        what = "options that each record brings" if task.choice_fields else "no labels"
        raise InputError(f"{option} needs labels that examples share (--labels); task {task.name} has {what}")


def _detect(sample: Mapping[str, Any]) -> Task:
    def has(role: str) -> bool:
        return any(alias in sample for alias in ALIASES[role])

    if "chosen" in sample and "rejected" in sample:
        return TASKS["chat_pair" if isinstance(sample["chosen"], list) else "preference"]
    if any(_has_messages(sample.get(alias)) for alias in ALIASES["messages"]):
        return TASKS["chat"]
    if "prompt" in sample and "completion" in sample:
        return TASKS["completion"]
    if "instruction" in sample and "output" in sample:
        return TASKS["alpaca"]
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


def _has_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(message, Mapping) for message in value)


def _detect_prompts(sample: Mapping[str, Any]) -> Task:
    for name, kind in (("prompt", str), ("chat", list)):
        role = TASKS[name].prompt_fields[0]
        if any(isinstance(sample.get(alias), kind) for alias in ALIASES[role]):
            return TASKS[name]
    raise InputError(
        f"--task: cannot tell the prompts from the fields {', '.join(sample)}; expected prompt, a text or a list of "
        "messages, or messages; name it with --fields prompt=NAME (of chats messages=NAME), or give a --template"
    )


def _check(task: Task) -> None:
    if task.is_chat and (task.invocation or task.template != TASKS["chat"].template or task.separator is not None):
        raise InputError(
            "--template, --invocation and --label-separator have no effect on chats, whose words are those of the "
            "chat template (--chat-template)"
        )
    for option, text in (
        ("template", task.template), ("invocation", task.invocation), ("label-separator", task.separator or ""),
        *(("labels", label) for label in task.labels), *(("choice-fields", name) for name in task.choice_fields),
    ):  # fmt: skip
        if is_torn(text):
            raise InputError(f"--{option}: {text!r} has half a character in it (a lone surrogate)")
    try:
        pieces = [piece for piece in Formatter().parse(task.template) if piece[1] is not None]
    except ValueError as error:
        raise InputError(f"--template: {task.template!r} is not a template: {error}") from error
    for _, name, form, conversion in pieces:
        if not (name or "").isidentifier() or form or conversion:
            raise InputError(f"--template: fields are names in braces such as {{text}}, got {task.template!r}")
    if [name for _, name, _, _ in pieces].count(MASK) > 1:
        raise InputError(f"--template: one {{mask}} stands for the label word, got {task.template!r}")
    if task.has_mask and not task.labels:
        raise InputError("--template: {mask} stands for one of the label words; give them with --labels")
    if set("{}") & set(task.invocation):
        raise InputError(f"--invocation: {task.invocation!r} must be fixed text, without fields in braces")
    if task.invocation and not task.template:
        raise InputError(
            f"--invocation: task {task.name} has no prompt that {task.invocation!r} could end; leave it out"
        )
    if task.classifies and not task.fields:
        raise InputError(f"--template: {task.template!r} uses no field of the data, such as {{text}}")
    if len(task.labels) == 1:
        raise InputError(f"--labels: a classification needs two labels or more, got {task.labels[0]!r}")
    if len(set(task.choice_fields)) < len(task.choice_fields):
        raise InputError(f"--choice-fields: {', '.join(task.choice_fields)} has a field twice")
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
