"""Reward functions in the shapes that TRL's documentation has; of a module that another process loads in no time."""

import asyncio
import re
import time
from typing import Any


def num_tokens(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


def num_tokens_as_documented(completions_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [float(len(ids)) for ids in completions_ids]


def num_characters(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


def thinks_then_answers(completions: list[list[dict[str, str]]], **kwargs: Any) -> list[float]:
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if re.match(r"^<think>.*?</think><answer>.*?</answer>$", content) else 0.0 for content in contents]


def is_right(completions: list[str], ground_truth: list[str], **kwargs: Any) -> list[float]:
    boxed = [re.search(r"\\boxed\{(.*?)\}", completion) for completion in completions]
    return [float(match is not None and match[1] == truth) for match, truth in zip(boxed, ground_truth, strict=True)]


def math_only(prompts: list[str], completions: list[str], task: list[str], **kwargs: Any) -> list[float | None]:
    return [1.0 if kind == "math" else None for kind in task]


def code_only(prompts: list[str], completions: list[str], task: list[str], **kwargs: Any) -> list[float | None]:
    return [-1.0 if kind == "code" else None for kind in task]


async def not_empty(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    await asyncio.sleep(0.01)
    return [1.0 if completion else 0.0 for completion in completions]


def grows(completions: list[str], trainer_state: Any, **kwargs: Any) -> list[float]:
    return [float(trainer_state.global_step)] * len(completions)


def hangs_on_b(completions: list[str]) -> list[float]:
    if "b" in completions:
        time.sleep(1000)
    return [1.0] * len(completions)


class Shorter:
    """A reward that is an object."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, completions: list[str], **kwargs: Any) -> list[bool]:
        return [len(completion) <= self.most for completion in completions]
