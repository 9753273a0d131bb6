"""The rewards that are there by name. Each is a function as TRL calls them, made of what stands behind a colon.

`exact_match:label` has the right answers in the column `label`, `regex:^\\d+$` has a pattern, `length:80` a length.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from zotune.errors import InputError
from zotune.rewards.checkers import countdown, gsm8k, math_verifier
from zotune.rewards.texts import right_answers, text_of
from zotune.run.scores import exact_match, token_f1
from zotune.values import shown

RewardFunction = Callable[..., Any]
"""`reward(prompts, completions, **columns) -> list[float | None]`, all as keywords; also as `async def`."""

Score = Callable[[str, str], float | None]

_FORMAT = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_TAG = re.compile(r"</?(?:think|answer)>")


@dataclass(frozen=True)
class Builtin:
    """A reward by name.

    `make` gets what stands behind the colon, None where there is no colon. One that `may_hang` on what a model wrote
    runs in a process of its own.
    """

    make: Callable[[str | None], RewardFunction]
    may_hang: bool = False


def make_builtin(name: str) -> RewardFunction:
    """The reward that a name stands for, with what it has behind the colon.

    Raises:
        InputError: what stands there is not what this reward takes.
    """
    kind, colon, rest = name.partition(":")
    return BUILTINS[kind].make(rest if colon else None)


def _against(score: Score) -> Callable[[str | None], RewardFunction]:
    """The best score with any of a record's right answers; None where it has none that can be compared."""

    def make(column: str | None) -> RewardFunction:
        def reward(completions: Sequence[Any], **columns: Any) -> list[float | None]:
            found = []
            for completion, golds in zip(completions, right_answers(columns, column), strict=True):
                scores = [score(text_of(completion), gold) for gold in golds]
                found.append(max((value for value in scores if value is not None), default=None))
            return found

        return reward

    return make


def _math_verify(column: str | None) -> RewardFunction:
    return _against(math_verifier())(column)


def _countdown(argument: str | None) -> RewardFunction:
    _nothing("countdown", argument)

    def reward(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        for name in ("nums", "target"):
            if name not in columns:
                raise InputError(
                    f"needs the columns nums (such as [3, 5, 7]) and target (such as 22); there is no {name}, but "
                    f"{', '.join(columns) or 'none at all'}"
                )
        return [
            None if numbers is None or target is None else countdown(text_of(completion), numbers, target)
            for completion, numbers, target in zip(completions, columns["nums"], columns["target"], strict=True)
        ]

    return reward


def _regex(pattern: str | None) -> RewardFunction:
    if not pattern:
        raise InputError(r"the reward regex needs a pattern behind a colon, as in 'regex:^\d+$'")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"the reward regex: {shown(pattern)} is no regular expression: {error}") from error

    def reward(completions: Sequence[Any], **_: Any) -> list[float]:
        return [float(compiled.search(text_of(completion)) is not None) for completion in completions]

    return reward


def _length(wanted: str | None) -> RewardFunction:
    if wanted is None:

        def count(completions: Sequence[Any], **_: Any) -> list[float]:
            return [float(len(text_of(completion))) for completion in completions]

        return count
    if not (wanted.isdecimal() and int(wanted)):
        raise InputError(
            f"the reward length takes a number of characters behind a colon, as in length:80, got {wanted!r}"
        )
    most = int(wanted)

    def nearness(completions: Sequence[Any], **_: Any) -> list[float]:
        return [max(0.0, 1 - abs(len(text_of(completion)) - most) / most) for completion in completions]

    return nearness


def _format(argument: str | None) -> RewardFunction:
    _nothing("format", argument)

    def reward(completions: Sequence[Any], **_: Any) -> list[float]:
        texts = [text_of(completion) for completion in completions]
        return [float(len(_TAG.findall(text)) == 4 and _FORMAT.fullmatch(text) is not None) for text in texts]

    return reward


def _nothing(name: str, argument: str | None) -> None:
    if argument is not None:
        raise InputError(f"the reward {name} takes nothing behind a colon, got {shown(argument)}")


BUILTINS: dict[str, Builtin] = {
    "exact_match": Builtin(_against(exact_match)),
    "f1": Builtin(_against(token_f1)),
    "regex": Builtin(_regex, may_hang=True),
    "length": Builtin(_length),
    "format": Builtin(_format),
    "gsm8k": Builtin(_against(gsm8k)),
    "countdown": Builtin(_countdown),
    "math_verify": Builtin(_math_verify, may_hang=True),
}
