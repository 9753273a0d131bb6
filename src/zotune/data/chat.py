"""Chats in a model's own words.

The words are those of the tokenizer's chat template (transformers' `apply_chat_template`), or of one that the user
names. What the template puts before an answer, the generation prompt, is the same for every chat: it is the task's
invocation, so that an activated adapter acts on answers alone and all chats share the keys and values of their
messages. An answer that is learnt goes up to the template's own end of a turn.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from zotune.data.messages import Message
from zotune.data.tasks import Task
from zotune.data.texts import TextExample
from zotune.errors import InputError, first_line


def with_template(tokenizer: Tokenizer, file: str | None) -> Tokenizer:
    """The tokenizer with the chat template of a file, where one is named.

    Raises:
        InputError: the file cannot be read, or has no template in it.
    """
    if file is None:
        return tokenizer
    path = Path(file).expanduser()
    try:
        template = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"--chat-template: cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--chat-template: {file} is not UTF-8") from error
    if "{" not in template:
        raise InputError(f"--chat-template: {file} is no Jinja template: it has no {{{{ }}}} and no {{% %}}")
    given = copy.copy(tokenizer)
    given.chat_template = template
    return given


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
            "a model that was trained for chats, name a template with --chat-template FILE, or give prompts as text"
        )
    prompts = [_words(text, text.messages, tokenizer) for text in texts]
    starts = {whole.removeprefix(before) if whole.startswith(before) else "" for before, whole in prompts}
    invocation = starts.pop() if len(starts) == 1 else ""
    made = []
    for text, (before, whole) in zip(texts, prompts, strict=True):
        answers = tuple(_answer(text, whole, reply, tokenizer) for reply in text.replies)
        made.append(
            replace(
                text,
                prompt=before if invocation else whole,
                completion=answers[0] if len(answers) == 1 else "",
                choices=answers if len(answers) > 1 else (),
            )
        )
    return replace(task, invocation=invocation, separator=""), made


def _words(text: TextExample, messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[str, str]:
    """A chat without and with the start of an answer."""
    return _rendered(text, messages, tokenizer, False), _rendered(text, messages, tokenizer, True)


def _answer(text: TextExample, asked: str, reply: Message, tokenizer: Tokenizer) -> str:
    """What the template puts behind `asked` for an answer, up to its end mark; the end token where it has no mark."""
    whole = _rendered(text, [*text.messages, reply], tokenizer, False)
    if not whole.startswith(asked):
        raise InputError(
            f"{text.where}: the chat template does not write this answer behind its own start of an answer, so that "
            "the two cannot be told apart; name another with --chat-template FILE"
        )
    answer, content = whole[len(asked) :].rstrip(), str(reply.get("content", "")).rstrip()
    if content and answer.endswith(content):
        return answer + str(tokenizer.eos_token or "")
    if not answer:
        raise InputError(f"{text.where}: the chat template writes nothing for the answer")
    return answer


def _rendered(text: TextExample, messages: Sequence[Message], tokenizer: Tokenizer, answered: bool) -> str:
    given: list[Any] = [dict(message) for message in messages]
    arguments: Mapping[str, Any] = text.template_arguments
    try:
        return str(tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=answered, **arguments))
    except Exception as error:  # whatever a template, which is a program, raises
        raise InputError(f"{text.where}: the chat template refuses the messages: {first_line(error)}") from error
