"""The rewards of a run: by name, or functions from Python; and whose code they are.

Code is never run because a run folder names it: whoever goes on with a run, or judges its adapter, names the rewards
again, unless they are built in.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from zotune.config.settings import Config
from zotune.errors import InputError
from zotune.rewards.functions import full_name, is_builtin
from zotune.rewards.weighted import Rewards

RewardFuncs = str | Callable[..., Any] | Sequence[str | Callable[..., Any]]


def listed_rewards(reward_funcs: RewardFuncs | None) -> list[str | Callable[..., Any]]:
    """One reward or several, as a list."""
    if reward_funcs is None:
        return []
    return [reward_funcs] if isinstance(reward_funcs, str) or callable(reward_funcs) else list(reward_funcs)


def names_of(reward_funcs: RewardFuncs | None) -> tuple[str, ...]:
    """What a run calls its rewards, wherever it is gone on with."""
    return tuple(map(full_name, listed_rewards(reward_funcs)))


def open_rewards(config: Config, reward_funcs: RewardFuncs | None = None) -> Rewards | None:
    """The rewards of `config`, or the functions given for them, ready to be called.

    Raises:
        InputError: no such reward, or one that cannot be loaded.
    """
    if not config.judges_texts:
        return None
    return Rewards(
        listed_rewards(reward_funcs) or config.reward, config.reward_weights or None, config.reward_timeout_s,
        config.reward_processes,
    )  # fmt: skip


def reopened(config: Config, reward_funcs: RewardFuncs | None, again: str) -> Config:
    """The settings of a run folder, whose rewards are those that are given for them now.

    Args:
        again: what to write to name them again.

    Raises:
        InputError: code that nobody but the folder names, or other rewards than the run's.
    """
    given = names_of(reward_funcs)
    if not given:
        code = [name for name in config.reward if not is_builtin(name)]
        if code and config.judges_texts:
            raise InputError(
                f"the run's reward {code[0]} is code, which is never taken from a run folder: name it again, {again}"
            )
        return config
    if [name.rpartition("/")[2] for name in given] != [name.rpartition("/")[2] for name in config.reward]:
        raise InputError(f"--reward: the run has {', '.join(config.reward) or 'none'}, got {', '.join(given)}")
    return replace(config, reward=given)
