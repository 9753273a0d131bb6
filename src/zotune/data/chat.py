"""Prompts that are the messages of a chat, put into a model's own words.

The words are those of the tokenizer's chat template (transformers' `apply_chat_template`). What the template puts
before an answer, the generation prompt, is the same for every chat: it is the task's invocation, so that an activated
adapter acts on answers alone and all chats share the keys and values of their messages.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from zotune.data.tasks import Task
from zotune.data.texts import TextExample
from zotune.errors import InputError, first_line


def in_words(task: Task, texts: Sequence[TextExample], tokenizer: Tokenizer) -> tuple[Task, list[TextExample]]:
    """The task and its examples as the model is to read them: those of other tasks as they are.

    Raises:
        InputError: a tokenizer without chat template, or messages that it refuses.
    """
    if not task.is_chat:
        return task, list(texts)
    if not tokenizer.chat_template:
        raise InputError(
            "--train-data: the prompts are messages of chats, and the tokenizer of --model has no chat template; take "
            "a model that was trained for chats, or give prompts as text"
        )
    pairs = [_words(text, tokenizer) for text in texts]
    starts = {whole.removeprefix(before) if whole.startswith(before) else "" for before, whole in pairs}
    invocation = starts.pop() if len(starts) == 1 else ""
    prompts = [before if invocation else whole for before, whole in pairs]
    return replace(task, invocation=invocation), [
        replace(text, prompt=prompt) for text, prompt in zip(texts, prompts, strict=True)
    ]


def _words(text: TextExample, tokenizer: Tokenizer) -> tuple[str, str]:
    """A chat without and with the start of an answer."""
    messages: Any = [dict(message) for message in text.messages]
    try:
        before, whole = (
            str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answered))
            for answered in (False, True)
        )
    except Exception as error:  # whatever a template, which is a program, raises
        raise InputError(
            f"{text.where}: the model's chat template refuses the messages: {first_line(error)}"
        ) from error
    return before, whole
