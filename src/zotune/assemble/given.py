"""What is given from Python: a loaded model and its tokenizer, callbacks, and records."""

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from zotune.errors import InputError
from zotune.run.trainer import Callback
from zotune.values import shown


def checked_model(model: Any) -> PreTrainedModel:
    """A model that the user has loaded."""
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"model: expected a hub id, a folder or a loaded model of transformers, got {shown(model)}")
    return model


def checked_callbacks(callbacks: Any, tokenizer: Any) -> list[Callback]:
    """The callbacks as a list; None has none."""
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        raise InputError(f"tokenizer: expected a tokenizer of transformers, got {shown(tokenizer)}")
    found = [] if callbacks is None else list(callbacks) if isinstance(callbacks, Iterable) else [callbacks]
    if wrong := [callback for callback in found if not isinstance(callback, Callback)]:
        raise InputError(f"callbacks: expected a list of zotune.Callback, got {shown(wrong[0])}")
    return found


def listed(in_memory: dict[str, Any]) -> dict[str, Any]:
    """Records that can be read once, such as a generator's, as a list."""
    return {name: list(data) if isinstance(data, Iterable) and not hasattr(data, "__len__") else data
            for name, data in in_memory.items()}  # fmt: skip
