"""The records that a call of the rewards is about, as the lists that reward functions take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zotune.errors import InputError
from zotune.rewards.texts import text_of
from zotune.values import shown

RESERVED = ("prompts", "completions", "completion_ids", "completions_ids", "trainer_state")


@dataclass(frozen=True)
class Batch:
    """Prompts, completions, columns and token ids by their names as arguments, all lists of `count` values."""

    lists: Mapping[str, Sequence[Any]]
    trainer_state: Any = None

    @property
    def count(self) -> int:
        return len(self.lists["completions"])

    @property
    def arguments(self) -> dict[str, Any]:
        """What a reward function is called with."""
        state = {} if self.trainer_state is None else {"trainer_state": self.trainer_state}
        return {name: list(values) for name, values in self.lists.items()} | state

    def part(self, start: int, stop: int) -> "Batch":
        """The records from `start` to before `stop`."""
        return Batch({name: values[start:stop] for name, values in self.lists.items()}, self.trainer_state)

    def described(self, index: int) -> str:
        """One record in a line, its texts shortened."""
        row = {name: values[index] for name, values in self.lists.items()}
        columns = [f"{name} {shown(value)}" for name, value in row.items() if name not in RESERVED]
        texts = [f"prompt {shown(text_of(row['prompts']))}", f"completion {shown(text_of(row['completions']))}"]
        return ", ".join(texts + columns)


def make_batch(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
    completion_ids: Sequence[Sequence[int]] | None,
    trainer_state: Any,
) -> Batch:
    """The arguments of a call, held to each other.

    Raises:
        InputError: lists of different lengths, or a column with the name of another argument.
    """
    taken = [name for name in RESERVED if name in columns]
    if taken:
        raise InputError(f"the column {taken[0]} of the data has the name of an argument of rewards; rename it")
    # TRL's trainer says completion_ids, and its documentation completions_ids.
    ids = {} if completion_ids is None else {"completion_ids": completion_ids, "completions_ids": completion_ids}
    data = {name: values for name, values in columns.items() if name != "prompt"}  # TRL gives it as `prompts` alone
    lists = {"prompts": prompts, "completions": completions, **ids, **data}
    for name, values in lists.items():
        if len(values) != len(completions):
            raise InputError(f"rewards of {len(completions)} completions: {name} has {len(values)} values")
    return Batch(lists, trainer_state)
