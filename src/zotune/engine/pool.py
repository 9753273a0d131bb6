"""A pool of engines is an engine: each takes a share of the probes of a step, or of the examples where probes are few.

The engines hold the same model and adapter form, in other processes or on other devices. Each keeps caches of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import pairwise
from typing import Any, Generic, TypeVar

import numpy as np

from zotune.zo.protocol import Cotangents, Engine, EngineStats, Example, Need, Probe, Sampling, Scores, Theta, TokenIds

AnEngine = TypeVar("AnEngine", bound=Engine)


class EnginePool(Generic[AnEngine]):
    """Engines that score side by side."""

    weights: None = None  # theta is never a model's own parameters

    def __init__(self, engines: Sequence[AnEngine]) -> None:
        self.engines = engines
        self.spec: Any = engines[0].spec
        self._threads = ThreadPoolExecutor(len(engines))

    @property
    def tensor_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self.engines[0].tensor_shapes

    @property
    def stats(self) -> EngineStats:
        """Counts of all engines together."""
        counts = [asdict(engine.stats) for engine in self.engines]
        return EngineStats(**{name: sum(count[name] for count in counts) for name in counts[0]})

    def score(self, theta: Theta, probes: Sequence[Probe], batch: Sequence[Example], normalized: bool = True) -> Scores:
        if len(probes) >= len(self.engines):
            shares = self._run(probes, lambda engine, some: engine.score(theta, some, batch, normalized))
            return Scores(np.concatenate([scores.log_probs for scores in shares]), shares[0].num_tokens)
        shares = self._run(batch, lambda engine, some: engine.score(theta, probes, some, normalized))
        width = max(scores.num_tokens.shape[1] for scores in shares)
        return Scores(
            np.concatenate([_widened(scores.log_probs, width, -np.inf) for scores in shares], axis=1),
            np.concatenate([_widened(scores.num_tokens, width, 0) for scores in shares]),
        )

    def identity(self) -> str | None:
        return self.engines[0].identity()

    def why_not(self, need: Need) -> str | None:
        if need in ("tangents", "gradients", "lens"):
            return "a pool of engines passes no derivatives on"
        return self.engines[0].why_not(need)

    def in_float32(self) -> None:
        """Not for several at once."""

    def gradient(
        self, theta: Theta, batch: Sequence[Example], cotangents: Cotangents, normalized: bool = True
    ) -> tuple[Scores, Theta]:
        raise TypeError(self.why_not("gradients"))

    def lens_gradient(
        self, theta: Theta, batch: Sequence[Example], cotangents: Cotangents, normalized: bool = True
    ) -> tuple[Scores, Theta]:
        raise TypeError(self.why_not("lens"))

    def generate(
        self, theta: Theta, probes: Sequence[Probe], prompts: Sequence[Example], sampling: Sampling
    ) -> list[list[TokenIds]]:
        def share(engine: AnEngine, some: Sequence[int]) -> list[list[TokenIds]]:
            return engine.generate(theta, probes, [prompts[i] for i in some], sampling.of(some, len(prompts)))

        shares = self._run(range(len(prompts)), share)
        return [[text for share in shares for text in share[index]] for index in range(len(probes))]

    def peak_memory_bytes(self) -> int:
        """The sum over the engines."""
        return sum(engine.peak_memory_bytes() for engine in self.engines)

    def close(self) -> None:
        self._threads.shutdown()
        for engine in self.engines:
            engine.close()

    def _run(self, items: Sequence[Any], work: Callable[[AnEngine, Sequence[Any]], Any]) -> list[Any]:
        """Work on a share of the items in each engine, all at once; results in the order of the items."""
        cuts = np.linspace(0, len(items), len(self.engines) + 1).astype(int)
        shares = [items[start:stop] for start, stop in pairwise(cuts)]
        running = [
            self._threads.submit(work, engine, share)
            for engine, share in zip(self.engines, shares, strict=True)
            if len(share)
        ]
        return [task.result() for task in running]


def _widened(values: np.ndarray, width: int, filling: float) -> np.ndarray:
    """Values [.., candidate], filled to `width` candidates."""
    missing = [(0, 0)] * (values.ndim - 1) + [(0, width - values.shape[-1])]
    return np.pad(values, missing, constant_values=filling)
