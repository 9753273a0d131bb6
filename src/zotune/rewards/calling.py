"""One call of one reward function, and what is wrong with its answer.

The arguments are TRL's: keywords `prompts`, `completions`, every column of the data, and `completion_ids` and
`trainer_state` where there are such. A function without `**kwargs` gets those that it names. A function may be an
`async def`; its calls share one event loop.
"""

import asyncio
import inspect
import math
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from zotune.errors import InputError, first_line
from zotune.rewards.builtin import RewardFunction
from zotune.values import is_flag, is_number, number_of, shown

Values = list[float | None]


@dataclass(frozen=True)
class Problem:
    """Why there are no values: `what` goes on behind the name of the reward.

    `index` is that of the record that it is about, None where that is not known. `details` is the traceback.
    """

    what: str
    index: int | None = None
    details: str = ""


class Caller:
    """Calls a function, as often as it is asked to."""

    def __init__(self, function: RewardFunction) -> None:
        self._function = function
        # A thread, since the one that calls may have an event loop of its own that runs, as in a notebook.
        self._thread = ThreadPoolExecutor(1)
        self._loop: asyncio.Runner | None = None

    def __call__(self, arguments: Mapping[str, Any], count: int) -> Values | Problem:
        """The values of `count` records, checked, or what is wrong with them. It raises nothing itself."""
        taken = _taken(self._function, arguments)
        if isinstance(taken, Problem):
            return taken
        try:
            answer = self._function(**taken)
            if inspect.isawaitable(answer):
                answer = self._thread.submit(self._awaited, answer).result()
        except InputError as error:  # of a built-in, which says what it lacks
            return Problem(str(error), 0)
        except (Exception, SystemExit) as error:
            return Problem(f"raised {type(error).__name__}: {first_line(error)}{_place(error)}", None, _details(error))
        return checked(answer, count)

    def close(self) -> None:
        if self._loop is not None:
            self._thread.submit(self._loop.close).result()
        self._thread.shutdown()

    def _awaited(self, answer: Any) -> Any:
        async def wait() -> Any:
            return await answer

        self._loop = self._loop or asyncio.Runner()
        return self._loop.run(wait())


def checked(answer: Any, count: int) -> Values | Problem:
    """An answer as numbers and None, or what is wrong with it. Arrays and tensors are lists of numbers, too."""
    if isinstance(answer, str | bytes | Mapping) or not (hasattr(answer, "__len__") and hasattr(answer, "__iter__")):
        return Problem(f"returned {shown(answer)}, where a list of {count} numbers is expected", 0)
    if len(answer) != count:
        return Problem(f"returned {_plural(len(answer), 'value')} for {_plural(count, 'completion')}")
    found: Values = []
    for index, value in enumerate(answer):
        plain = value.item() if getattr(value, "shape", None) == () else value  # a number of an array or a tensor
        if plain is None:
            found.append(None)
        elif not (is_number(plain) or is_flag(plain)):
            return Problem(f"returned {shown(plain)}, which is neither a number nor None", index)
        elif not math.isfinite(number_of(plain)):
            said = (
                "no number (NaN); None leaves a record out" if plain != plain else f"{shown(plain)}: it must be finite"
            )
            return Problem(f"returned {said}", index)
        else:
            found.append(number_of(plain))
    return found


def _taken(function: RewardFunction, arguments: Mapping[str, Any]) -> Mapping[str, Any] | Problem:
    """Those of the arguments that a function takes."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # compiled ones may not say
        return arguments
    named = {each.name: each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    missing = [name for name, each in named.items() if each.default is each.empty and name not in arguments]
    if missing:
        return Problem(
            f"asks for {', '.join(missing)}, which is no column of the data; it can have {', '.join(arguments)}", 0
        )
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return arguments
    return {name: value for name, value in arguments.items() if name in named}


def _place(error: BaseException) -> str:
    """Where in the user's code it was raised."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is ours
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def _details(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
