"""What was asked of a run: its settings, checked against each other."""

from dataclasses import dataclass

from zotune.config.checks import check
from zotune.config.fields import Fields


@dataclass(frozen=True)
class Config(Fields):
    """Fine-tune a language model with forward passes only. Unless you ask for something else, a LoRA adapter is
    trained.

    Raises:
        InputError: a value out of range, or settings that mean nothing beside others.
    """

    def __post_init__(self) -> None:
        check(self)
