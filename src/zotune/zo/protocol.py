"""The engine contract: what a trainer asks of a model, and the values that cross the border.

Engines score candidates under probes of theta, continue prompts, and differentiate where they can; `why_not` says what
an engine cannot do. A cache inside an engine may change its speed, never a number: results come in the order asked
for, and the same call gives the same numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np

from zotune.zo.draws import derive_seed
from zotune.zo.noise import GAUSSIAN, Noise

Theta = Mapping[str, np.ndarray]
"""The trained numbers: tensor name (as in PEFT's files) -> float32 array. The master copy; never written in place."""

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class Probe:
    """A point theta + distance * z(seed). Distance 0 is theta itself. `base`, where given, stands in for theta.

    With `derivative` it asks for the derivative along z(seed) at theta; the probes of a call all do, or none.
    """

    seed: int
    distance: float
    noise: Noise = GAUSSIAN
    base: Theta | None = None
    derivative: bool = False

    def of(self, theta: Theta) -> Theta:
        """The probe's tensors, computed in float32 from the master copy."""
        point = theta if self.base is None else self.base
        if self.distance == 0.0:
            return point
        distance, z = np.float32(self.distance), self.noise.direction(self.seed, point)
        return {name: value + distance * z[name] for name, value in point.items()}


AT_THETA = Probe(seed=0, distance=0.0)


def points(theta: Theta, probes: Sequence[Probe]) -> list[Theta]:
    """Each probe's tensors, as `Probe.of` gives them; a direction is drawn once for all its distances."""
    bases = [theta if probe.base is None else probe.base for probe in probes]
    drawn: dict[tuple[int, Noise, int], Theta] = {}
    result = []
    for probe, base in zip(probes, bases, strict=True):
        if not probe.distance:
            result.append(base)
            continue
        key = (probe.seed, probe.noise, id(base))
        if key not in drawn:
            drawn[key] = probe.noise.direction(probe.seed, base)
        distance, z = np.float32(probe.distance), drawn[key]
        result.append({name: value + distance * z[name] for name, value in base.items()})
    return result


@dataclass(frozen=True)
class Example:
    """What is scored: each candidate is a possible continuation of prompt + invocation.

    An activated adapter acts from the first token of the invocation on. A soft prompt's vectors stand where a prompt
    has the negative ids of `PromptSpec.virtual_tokens`. `label` is the index of the right candidate where it is known.
    In a masked model candidates have one token each, which stands in place of the mask, `mask_at` in the prompt, and
    there is no invocation. With a classification head these tokens are the labels' numbers; `second_at` is where the
    second text of a pair begins, for models that tell the two apart.
    `columns` is the record that the example was made of, for rewards and metrics, `said` the prompt before it became
    tokens, a text or the messages of a chat, and `also_right` has further candidates that count as right. Engines read
    none of these, and the last three stay in the process that made them: a copy sent to another process has none.
    """

    prompt: TokenIds
    invocation: TokenIds
    candidates: tuple[TokenIds, ...]
    label: int | None = None
    mask_at: int | None = None
    second_at: int | None = None
    columns: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), compare=False, repr=False)
    also_right: tuple[int, ...] = field(default=(), compare=False, repr=False)
    said: Any = field(default="", compare=False, repr=False)

    def is_right(self, answer: Any) -> bool:
        """Whether a candidate, by its index, counts as right."""
        return bool(answer == self.label or answer in self.also_right)

    def __reduce__(self) -> tuple[type["Example"], tuple[Any, ...]]:
        return Example, (self.prompt, self.invocation, self.candidates, self.label, self.mask_at, self.second_at)


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of the candidates, summed over their tokens.

    Examples with fewer candidates than the widest are filled with -inf and a token count of 0. Where probes ask for
    derivatives, `tangents` are those of `log_probs`, which are at theta then; they are filled with 0.
    """

    log_probs: np.ndarray  # float32 [probe, example, candidate]
    num_tokens: np.ndarray  # int64 [example, candidate]
    tangents: np.ndarray | None = None  # float32 [probe, example, candidate]


@dataclass(frozen=True)
class Sampling:
    """How to generate: greedily where `temperature` is 0, else by sampling.

    Of the most likely tokens, those are drawn from whose probabilities (at that temperature) are `top_p` together. Each
    prompt of a call has a seed of its own: the noise of a token is a function of that seed and of the token's place
    among the new ones. So a text depends neither on what else is generated nor on how, and all probes of a prompt have
    the same noise. `seeds` has one for each prompt of the call; None: they are derived from `seed` and the prompt's
    place in the call. Several samples of one prompt are several places with that prompt. Where `ends` is given, an
    engine may leave a text as soon as that says of its tokens that nothing of what follows will be read; a copy sent to
    another process has none.
    """

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    stop_token_ids: TokenIds = ()
    top_p: float = 1.0
    seeds: tuple[int, ...] | None = None
    ends: Callable[[Sequence[int]], bool] | None = None

    def __reduce__(self) -> tuple[type["Sampling"], tuple[Any, ...]]:
        return Sampling, (
            self.max_new_tokens, self.temperature, self.seed, self.stop_token_ids, self.top_p, self.seeds,
        )  # fmt: skip

    def row_seeds(self, num_prompts: int) -> tuple[int, ...]:
        """The seed of each prompt of a call.

        Raises:
            ValueError: another number of seeds was given.
        """
        if self.seeds is None:
            return tuple(derive_seed(self.seed, "text", index) for index in range(num_prompts))
        if len(self.seeds) != num_prompts:
            raise ValueError(f"sampling.seeds has {len(self.seeds)} for {num_prompts} prompts; give one for each")
        return self.seeds

    def of(self, which: Sequence[int], num_prompts: int) -> "Sampling":
        """The same for some prompts of a call, by their places in it."""
        seeds = self.row_seeds(num_prompts)
        return replace(self, seeds=tuple(seeds[index] for index in which))


@dataclass
class EngineStats:
    """Counters of what really ran since the engine was made. Padding is not counted as tokens."""

    forward_passes: int = 0
    tokens_computed: int = 0
    tokens_reused: int = 0


Need = Literal["scores", "generations", "tangents", "gradients", "lens"]
"""What may be asked of an engine: log-probabilities, texts, derivatives along probes, gradients by backpropagation or
by a lens."""

Cotangents = Callable[[Scores], np.ndarray]
"""From the scores at theta to the derivative of a loss with respect to each log-probability: [example, candidate]."""

GradientOfScores = Callable[[Theta, Sequence[Example], Cotangents, bool], tuple[Scores, Theta]]
"""An engine's way to differentiate: scores at theta, and the gradient of sum(cotangents * log_probs)."""


class Form(Protocol):
    """What an engine says of the adapter that it trains; see `adapter.spec`."""

    @property
    def scope(self) -> str: ...

    @property
    def peft_type(self) -> str: ...

    @property
    def invocation_tokens(self) -> TokenIds | None: ...

    @property
    def virtual_tokens(self) -> TokenIds: ...


class Weights(Protocol):
    """Theta where it is the model's own parameters, which there is one of: a mapping that reads and writes them."""

    def save(self, folder: Path, tokenizer: Any) -> None:
        """Write a model folder of transformers."""
        ...


class Engine(Protocol):
    """A language model with something to train: an adapter, or its own parameters."""

    @property
    def spec(self) -> Any:
        """The form of the adapter (a `Form`); None where theta is the model's own parameters."""
        ...

    @property
    def weights(self) -> Any:
        """Theta itself (`Weights`) where it is the model's own parameters, else None."""
        ...

    @property
    def tensor_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor of theta."""
        ...

    @property
    def stats(self) -> EngineStats:
        """What has run so far."""
        ...

    def why_not(self, need: Need) -> str | None:
        """Why this engine cannot give what is needed, in a sentence; None where it can."""
        ...

    def identity(self) -> str | None:
        """A digest of the base model's weights, those that a run began with; None where it is not known."""
        ...

    def score(self, theta: Theta, probes: Sequence[Probe], batch: Sequence[Example], normalized: bool = True) -> Scores:
        """Score every candidate of every example under every probe.

        Args:
            normalized: false where the caller compares candidates of an example under a probe alone: then all their
                log-probabilities may be off by the same amount, where that saves work.
        """
        ...

    def in_float32(self) -> AbstractContextManager[None] | None:
        """Inside, a model of half precision computes in float32; None where it is none, or cannot."""
        ...

    def gradient(
        self, theta: Theta, batch: Sequence[Example], cotangents: Cotangents, normalized: bool = True
    ) -> tuple[Scores, Theta]:
        """Scores at theta, for one probe, and the gradient of sum(cotangents * log_probs) for every tensor of theta.

        Args:
            normalized: as of `score`; false, too, only where the cotangents of an example sum to zero.
        """
        ...

    def lens_gradient(
        self, theta: Theta, batch: Sequence[Example], cotangents: Cotangents, normalized: bool = True
    ) -> tuple[Scores, Theta]:
        """The same as `gradient` for B, by one pass and a way back of few tokens; in scope everywhere about that."""
        ...

    def generate(
        self, theta: Theta, probes: Sequence[Probe], prompts: Sequence[Example], sampling: Sampling
    ) -> list[list[TokenIds]]:
        """Continue prompt + invocation of each example: token ids [probe][prompt], stop token left out."""
        ...

    def peak_memory_bytes(self) -> int:
        """The most memory held so far: the device's where there is one, else this process's resident set."""
        ...

    def close(self) -> None:
        """Give back what the engine holds and leave the model as it was."""
        ...
