"""Demonstrations: examples with their answers, which stand before every prompt (in-context learning).

They are joined as MeZO joins them (Malladi et al., 2023): each without spaces around it, and an empty line after each.
They are the same for all examples, so that their keys and values are computed once.
"""

from collections.abc import Sequence

from zotune.data.records import T
from zotune.data.tasks import Task
from zotune.data.texts import TextExample
from zotune.errors import InputError
from zotune.zo.draws import permutation

BREAK = "\n\n"


def draw_demonstrations(examples: Sequence[T], num: int, seed: int, task: Task) -> tuple[list[T], list[T]]:
    """(demonstrations in the order of the draw, the others in the order of the data).

    Raises:
        InputError: there are not so many, or none would be left to train on, or the task has no prompt.
    """
    if num == 0:
        return [], list(examples)
    if task.is_chat:
        raise InputError("--num-demonstrations does not go with chats: put them into the messages")
    if not task.template:
        raise InputError(f"--num-demonstrations: task {task.name} has no prompt that demonstrations could stand before")
    if num >= len(examples):
        raise InputError(
            f"--num-demonstrations must be at most {len(examples) - 1}, got {num}: --train-data has {len(examples)} "
            "examples, and one must be left"
        )
    drawn = permutation(seed, "demonstrations", len(examples))[:num].tolist()
    kept = set(drawn)
    return [examples[i] for i in drawn], [example for i, example in enumerate(examples) if i not in kept]


def demonstrations_text(examples: Sequence[TextExample], task: Task) -> str:
    """What stands before every prompt."""
    return "".join((text.prompt + task.invocation + _answer(text, task)).strip() + BREAK for text in examples)


def _answer(text: TextExample, task: Task) -> str:
    if text.label is None:
        return text.completion
    if text.choices:
        return task.spaced(text.choices[text.label], text.prompt)
    return task.spaced(task.label_words[text.label], task.template)
