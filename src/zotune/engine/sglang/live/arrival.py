"""What is said between an engine and the server that it comes to, and between the ranks of that server."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zotune.adapter.spec import LoraSpec

SOCKET, SHARE, SLOTS = "ZOTUNE_SERVER", "ZOTUNE_SHARE", "ZOTUNE_SLOTS"
"""Environment variables: the socket, training's share of the time with users, and how many LoRA slots it may take."""
DEFAULT_SHARE = 0.07


def usage_file(socket: Path) -> Path:
    """Where the scheduler behind a socket says what part of its time training has had of late: JSON, `share`."""
    return socket.with_suffix(".usage")


@dataclass(frozen=True)
class Arrival:
    """The adapter, where theta lies (a file that both map), and which model the engine is for."""

    spec: LoraSpec
    shapes: Mapping[str, tuple[int, ...]]
    theta: str
    num_probes: int
    model: str
    dtype: str


@dataclass(frozen=True)
class Turn:
    """Of all ranks: go on with the command that runs, or begin this one: up to a pass of so many tokens, or so many
    steps of what it does without the model."""

    most_tokens: int
    most_steps: int
    command: tuple[str, tuple[Any, ...]] | None = None
