"""The encoder of a task for a model: of prompts that candidates continue, or of whole texts."""

from zotune.assemble.model import Model
from zotune.config.settings import Config
from zotune.data.classification import ClassificationEncoder
from zotune.data.masked import MaskedEncoder
from zotune.data.tasks import Task
from zotune.data.templates import Encoder
from zotune.errors import InputError
from zotune.zo.protocol import TokenIds

AnyEncoder = Encoder | MaskedEncoder | ClassificationEncoder


def make_encoder(
    model: Model,
    task: Task,
    config: Config,
    max_length: int,
    activated: bool = False,
    virtual_tokens: TokenIds = (),
    demonstrations: str = "",
) -> AnyEncoder:
    """What makes token ids of the task's texts.

    Raises:
        InputError: the task does not go with the model.
    """
    if not model.is_masked:
        if task.has_mask:
            raise InputError(
                f"--template: {config.model} is a causal model, and {{mask}} is for masked ones; leave it out, and say "
                "with --invocation what stands before the label word"
            )
        return Encoder(
            model.tokenizer, task, max_length, activated, virtual_tokens, model.num_embeddings, demonstrations
        )
    if task.is_chat:
        raise InputError(f"--train-data: {config.model} is a masked model, which takes no chats; take a causal model")
    if activated:
        raise InputError(
            f"--scope activated: {config.model} is a masked model, whose tokens see the whole text, so that no part of "
            "it stays the same; use --scope everywhere"
        )
    if demonstrations:
        raise InputError(f"--num-demonstrations: {config.model} is a masked model, which takes no demonstrations")
    if config.judges_texts:
        raise InputError(f"--reward: {config.model} is a masked model, which writes no texts; take a causal model")
    if model.num_labels is not None:
        if config.invocation:
            raise InputError("--invocation: a classification head reads no label words that it could stand before")
        return ClassificationEncoder(
            model.tokenizer, task, config.field_names, max_length, virtual_tokens, model.num_embeddings
        )
    return MaskedEncoder(model.tokenizer, task, config.field_names, max_length, virtual_tokens, model.num_embeddings)
