"""What goes to a worker and comes back: numbers of thetas and examples, seeds and distances, scores. No tensors of
theta's size but where a worker lacks a theta, and where the answer is a gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from zotune.engine.kind import EngineKind, EngineRequest
from zotune.zo.moves import Move
from zotune.zo.protocol import EngineStats, Example, Probe, Sampling

Method = Literal["score", "generate", "gradient", "lens_gradient"]


@dataclass(frozen=True)
class Opening:
    """What a worker opens its engine with. The most memory for prompts is shared by those of a machine."""

    kind: EngineKind
    request: EngineRequest
    num_threads: int
    workers_here: int


@dataclass(frozen=True)
class About:
    """What a worker says of itself once its engine is open."""

    spec: Any
    tensor_shapes: Mapping[str, tuple[int, ...]]
    identity: str | None
    has_float32: bool
    host: str
    pid: int
    machine: str


@dataclass(frozen=True)
class Trial:
    """A digest of scores that every worker computes before its first piece, and the scores, to say how far off."""

    digest: str
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Call:
    """What a call of the engine asks for, but for its examples. Thetas go by numbers, `bases` those of the probes."""

    number: int
    method: Method
    theta: int
    digests: Mapping[int, str]
    probes: tuple[Probe, ...]
    bases: tuple[int | None, ...]
    normalized: bool = True
    sampling: Sampling | None = None
    in_float32: bool = False


@dataclass(frozen=True)
class Part:
    """A piece of a call: its number, its probes by their places, its examples by their numbers, and what belongs to
    each: its seed in `generate`, its cotangents in a gradient."""

    number: int
    probes: range
    examples: tuple[int, ...]
    of_examples: Any = None


@dataclass(frozen=True)
class Order:
    """Pieces of a call for one worker. The call, and the thetas of `wholes`, their numbers, come beside it from Ray's
    object store. `examples` are those that the worker has not seen."""

    parts: tuple[Part, ...]
    examples: Mapping[int, Example]
    wholes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
    """Results by the number of their part; or, with no results, what the worker lacks: thetas and examples by number,
    and thetas that it had otherwise (`wrong`)."""

    results: Mapping[int, Any] = field(default_factory=dict)
    lacks_thetas: tuple[int, ...] = ()
    lacks_examples: tuple[int, ...] = ()
    wrong: tuple[int, ...] = ()
    seconds: float = 0.0
    stats: EngineStats = field(default_factory=EngineStats)
    peak_memory_bytes: int = 0
    has_state: bool = False


@dataclass(frozen=True)
class Following:
    """That theta `before`, moved so, is theta `after`."""

    before: int
    after: int
    move: Move
