"""What SGLang is asked to run, and what it counts while it does.

Work is done pass by pass (`Passes`): in a server that has users, theirs come in between. A job carries three things
that SGLang's own requests do not: how many of its first tokens may come from the tree, in which namespace of it they
lie, and whether they enter it.
"""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from zotune.engine.sglang.rows import Row
from zotune.zo.protocol import TokenIds

T = TypeVar("T")
Passes = Generator[None, None, T]
"""Work that stops after each pass of the model, and gives a T at its end."""


def finished(passes: Passes[T]) -> T:
    """What work gives that nothing else comes between."""
    while True:
        try:
            next(passes)
        except StopIteration as end:
            found: T = end.value
            return found


@dataclass
class Job:
    """One request. What comes back of it: log-probabilities at its scored positions, or new tokens.

    Args:
        tokens: what is prefilled.
        slot: the adapter's slot; None is the base model.
        max_cached: at most so many of its first tokens come from the tree; `exact`: neither fewer.
        namespace: where in the tree it looks and is kept; None is the base model's.
        keep: whether its KV enters the tree.
        num_scored, token_ids: at the last `num_scored` positions, the log-probabilities of these next tokens.
        row: what it scores.
        num_visited: how many of the last tokens the way back of a gradient takes.
        text: the text that goes on with the tokens; None where nothing is generated.
    """

    tokens: TokenIds
    slot: int | None = None
    max_cached: int | None = None
    exact: bool = False
    namespace: str | None = None
    keep: bool = False
    num_scored: int = 0
    token_ids: tuple[int, ...] = ()
    row: Row | None = None
    num_visited: int = 0
    text: "Text | None" = None
    log_probs: list[list[float]] = field(default_factory=list)  # [scored position][token of token_ids]
    new_tokens: TokenIds = ()

    @property
    def most_computed(self) -> int:
        """How many of its tokens a pass has to compute, at most."""
        return len(self.tokens) - ((self.max_cached or 0) if self.exact else 0)


@dataclass(frozen=True)
class Text:
    """Which of a call's texts a job writes, and where it ends.

    Args:
        probe, prompt: their places in the call.
        max_new_tokens: where no stop token comes before.
    """

    probe: int
    prompt: int
    max_new_tokens: int
    stop_token_ids: TokenIds


@dataclass(frozen=True)
class VisitedTokens:
    """Of the tokens of a job that the way back takes, those that a pass computes.

    Args:
        indices: where they stand among the tokens of the pass.
        positions: in the job's tokens.
        kv: the places in SGLang's pool of the keys and values of the job's tokens, up to the last that is computed.
    """

    job: Job
    indices: tuple[int, ...]
    positions: tuple[int, ...]
    kv: Any


@dataclass
class Counts:
    """From SGLang's own batches and requests."""

    forward_passes: int = 0
    tokens_computed: int = 0
    tokens_cached: int = 0
    retractions: int = 0

    def add(self, other: "Counts") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
