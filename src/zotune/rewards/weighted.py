"""Several rewards of what a model wrote, weighted and added up: what a trainer asks.

The reward of a record is the sum over the reward functions of weight times value, as in TRL's GRPOTrainer. A function
that says None has nothing to say of that record; one of which all say None is left out (NaN).
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zotune.errors import InputError, RewardError
from zotune.rewards.batch import Batch, make_batch
from zotune.rewards.builtin import RewardFunction
from zotune.rewards.calling import Problem, Values
from zotune.rewards.functions import Source, source_of
from zotune.rewards.pool import Place, RewardHere, RewardPool
from zotune.rewards.waiting import said_when_slow
from zotune.values import is_number, number_of, shown, whole_of

logger = logging.getLogger("zotune")

MOST_PROCESSES = 1024
LONGEST_TIMEOUT_S = 86_400


@dataclass(frozen=True)
class Rewarded:
    """The rewards of n records.

    `values` float64 [n] are weighted sums, NaN where a record is left out. `by_name` has those of each reward, not
    weighted, float64 [n], NaN for None.
    """

    values: np.ndarray
    by_name: Mapping[str, np.ndarray]


class Rewards:
    """Reward functions, ready to be called. Close it, or use it in a `with`, to end their processes.

    Args:
        reward_funcs: one or more functions with TRL's signature, or names: of a built-in (`gsm8k`), of a function in a
            file (`my.py:score`) or in a module (`package.module:score`). What a name stands for is code that runs with
            your rights; it runs in a process of its own, and so does a function that can be pickled.
        reward_weights: one for each; None: all 1.
        reward_timeout_s: seconds that a call may take, of a function that has a process of its own; None: no limit.
        num_processes: for each such function. With more than one, a batch is split among them, so that a function
            never sees all of it; it must judge each completion by itself.

    Raises:
        InputError: no such function, one that cannot be loaded, weights or numbers that are not allowed.
    """

    def __init__(
        self,
        reward_funcs: str | Callable[..., Any] | Sequence[str | Callable[..., Any]],
        reward_weights: Sequence[float] | None = None,
        reward_timeout_s: float | None = 60.0,
        num_processes: int = 1,
    ) -> None:
        given = [reward_funcs] if isinstance(reward_funcs, str) or callable(reward_funcs) else list(reward_funcs)
        if not given:
            raise InputError("reward_funcs: expected one reward or more, got none")
        self._timeout_s = _timeout(reward_timeout_s)
        num_processes = whole_of(num_processes, "num_processes", 1, MOST_PROCESSES)
        sources = [source_of(each) for each in given]
        self.names = _different([source.name for source in sources])
        self.weights = _weights(reward_weights, len(sources))
        self._places: list[Place] = []
        try:
            for name, source in zip(self.names, sources, strict=True):
                self._places.append(_place(name, source, self._timeout_s, num_processes))
            for index, (name, source) in enumerate(zip(self.names, sources, strict=True)):
                problem = self._places[index].ready()
                if problem is None:
                    continue
                if source.function is None:
                    raise InputError(f"reward {name} {problem.what}")
                self._places[index].close()
                self._places[index] = _here(name, source.function, problem.what)
        except BaseException:
            self.close()
            raise

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]],
        completion_ids: Sequence[Sequence[int]] | None = None,
        trainer_state: Any = None,
    ) -> Rewarded:
        """The rewards of n completions.

        Args:
            prompts: n texts, or n lists of messages.
            completions: the same, of what the model wrote.
            columns: the columns of the data, n values each.
            completion_ids: token ids, for functions that ask for them.
            trainer_state: an object with the state of training, for functions that ask for it.

        Raises:
            RewardError: a function raised, gave no answer in time, or answered with something else than n finite
                numbers or None. All is as it was before the call: the next one can be made.
            InputError: the arguments do not go together.
        """
        batch = make_batch(prompts, completions, columns, completion_ids, trainer_state)
        by_name = {name: np.full(batch.count, np.nan) for name in self.names}
        if batch.count:
            for name, answer in zip(self.names, self._answers(batch), strict=True):
                by_name[name] = np.array([np.nan if value is None else value for value in answer])
        stacked = np.stack(list(by_name.values()))  # [reward, record]
        values = np.nansum(np.array(self.weights)[:, None] * stacked, axis=0)
        values[np.isnan(stacked).all(axis=0)] = np.nan
        return Rewarded(values, by_name)

    def close(self) -> None:
        """End all processes. Nothing can be asked after that."""
        for place in self._places:
            place.close()

    def __enter__(self) -> "Rewards":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answers(self, batch: Batch) -> list[Values]:
        """The values of each reward."""
        try:
            for place in self._places:
                place.begin(batch)
            with said_when_slow(batch.count, self._progress):
                answers = [place.answer() for place in self._places]  # all of them, before any is looked at
            for name, place, answer in zip(self.names, self._places, answers, strict=True):
                if isinstance(answer, Problem):
                    raise _error(name, answer, batch, self._first_alone(place, answer, batch))
        except RewardError:
            raise
        except BaseException:  # such as Ctrl-C: what comes later would be taken for the answer to the next call
            for place in self._places:
                place.abandon()
            raise
        return [answer for answer in answers if not isinstance(answer, Problem)]

    def _progress(self) -> tuple[int, int]:
        """How many processes have answered, of how many that were asked."""
        answered, asked = zip(*(place.progress for place in self._places), strict=True)
        return sum(answered), sum(asked)

    def _first_alone(self, place: Place, problem: Problem, batch: Batch) -> Problem | None:
        """The first record that has a problem when it is asked for alone; None where none was found in time."""
        if problem.index is not None:
            return problem
        spent_s = 0.0
        for index in range(batch.count):
            if self._timeout_s is not None and spent_s > self._timeout_s:
                break
            place.begin(batch.part(index, index + 1))  # which loads the function again where its process was ended
            began = time.monotonic()
            answer = place.answer()
            spent_s += time.monotonic() - began
            if isinstance(answer, Problem):
                return Problem(answer.what, index, answer.details)
        return None


def _error(name: str, problem: Problem, batch: Batch, alone: Problem | None) -> RewardError:
    """What to say, with the record."""
    if alone is not None:
        assert alone.index is not None
        error = RewardError(f"reward {name} {alone.what}; the record: {batch.described(alone.index)}")
    else:
        error = RewardError(
            f"reward {name} {problem.what}, for {batch.count} records at once; the first: {batch.described(0)}"
        )
    details = (alone or problem).details
    if details:
        error.add_note(details)
    return error


def _place(name: str, source: Source, timeout_s: float | None, num_processes: int) -> Place:
    if source.kind == "user code":
        where = source.name.rpartition(":")[0]
        where = str(Path(where).expanduser().resolve()) if where.endswith(".py") else where
        logger.info("reward %s: runs the code of %s, with your rights", name, where)
    if source.portable is not None:
        return RewardPool(source.portable, timeout_s, num_processes)
    assert source.function is not None
    if source.kind == "given":
        return _here(name, source.function, "cannot be loaded in another process: it is in no module")
    return RewardHere(source.function)


def _here(name: str, function: RewardFunction, why: str) -> RewardHere:
    logger.info("reward %s %s; it runs in this one, where reward_timeout_s cannot end it", name, why)
    return RewardHere(function)


def _different(names: Sequence[str]) -> tuple[str, ...]:
    """Names of which no two are the same: of those that are, the second is `score_2`."""
    found: list[str] = []
    for name in names:
        number, new = 1, name
        while new in found:
            number += 1
            new = f"{name}_{number}"
        found.append(new)
    return tuple(found)


def _weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    if weights is None:
        return (1.0,) * count
    if len(weights) != count:
        raise InputError(f"reward_weights: expected {count}, one for each reward, got {len(weights)}")
    for weight in weights:
        if not (is_number(weight) and math.isfinite(number_of(weight))):
            raise InputError(f"reward_weights: expected finite numbers, got {shown(weight)}")
    return tuple(map(number_of, weights))


def _timeout(seconds: float | None) -> float | None:
    if seconds is None:
        return None
    if not (is_number(seconds) and 0 < number_of(seconds) <= LONGEST_TIMEOUT_S):
        raise InputError(
            f"reward_timeout_s: expected seconds above 0 and up to {LONGEST_TIMEOUT_S:,}, or None for no limit, "
            f"got {shown(seconds)}"
        )
    return number_of(seconds)
