"""The Ray engine, as the trainer's process sees it: it cuts each call into pieces, has them shared out to workers, and
puts together what they found. It keeps the engine contract, and makes the moves of theta (`zo.moves`), so that seeds
and scalars are what is sent in a step.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from zotune.engine.kind import EngineKind, EngineRequest
from zotune.engine.ray.crew import Crew
from zotune.engine.ray.cut import Piece, cut
from zotune.engine.ray.joining import Joining
from zotune.engine.ray.messages import Method
from zotune.engine.ray.options import RayOptions
from zotune.engine.ray.report import Traffic, table
from zotune.engine.ray.session import Session
from zotune.engine.ray.sharing import Sharing
from zotune.engine.scores import empty_scores
from zotune.zo.moves import Move
from zotune.zo.optimizers.base import Tensors
from zotune.zo.protocol import (
    AT_THETA,
    Cotangents,
    EngineStats,
    Example,
    Need,
    Probe,
    Sampling,
    Scores,
    Theta,
    TokenIds,
)

logger = logging.getLogger("zotune")


class RayEngine:
    """Scores probes of an adapter on workers of a Ray cluster.

    Args:
        request: what each worker opens its engine for; the model's folder or id is found on every machine.
        kind: of the engine in each worker.

    Raises:
        InputError: there is no cluster where one was named, or a worker cannot open its engine.
    """

    weights: None = None  # theta is never the model's own parameters

    def __init__(self, request: EngineRequest, options: RayOptions, kind: EngineKind) -> None:
        on_gpu = request.device.startswith("cuda")
        if options.num_gpus_per_worker is None:
            options = replace(options, num_gpus_per_worker=1.0 if on_gpu else 0.0)
        self.options = options
        self.stats = EngineStats()
        self.traffic = Traffic()
        self._session = Session(options)
        self._crew: Crew | None = None
        try:
            size = options.num_workers or self._session.default_workers(options)
            room = min(size, self._session.room_on_a_node(options))
            resources = {"num_cpus": options.num_cpus_per_worker, "num_gpus": options.num_gpus_per_worker or 0}
            self._crew = Crew(size, resources)
            self.seats = self._crew.seats
            # A configuration may be of a class that came with the model; the workers read it themselves.
            wire = replace(
                request,
                config=None,  # type: ignore[arg-type]
                tables={},
                options=request.tables.get(options.engine, {}),
            )
            self._joining = Joining(self._crew, kind, wire, options, room)
        except BaseException:
            self.close()
            raise
        about = self._joining.about
        assert about
        self.spec: Any = about.spec
        self.tensor_shapes: Mapping[str, tuple[int, ...]] = about.tensor_shapes
        self._about = about
        self.sharing = Sharing(
            self._crew, self._joining, self.stats, self.traffic, keeps_prompts=self.spec.scope == "activated"
        )
        self._in_float32 = False
        self._obstacles: dict[Need, str | None] = {}

    def score(self, theta: Theta, probes: Sequence[Probe], batch: Sequence[Example], normalized: bool = True) -> Scores:
        pieces = self._cut(len(probes), len(batch))
        results = self._shared("score", theta, probes, batch, pieces, normalized=normalized)
        num_tokens, log_probs = empty_scores(len(probes), batch)
        tangents = np.zeros_like(log_probs) if any(probe.derivative for probe in probes) else None
        for piece, scores in zip(pieces, results, strict=True):
            where = np.s_[_slice(piece.probes), _slice(piece.examples), : scores.num_tokens.shape[1]]
            log_probs[where] = scores.log_probs
            if tangents is not None:
                tangents[where] = scores.tangents
        return Scores(log_probs, num_tokens, tangents)

    def gradient(
        self, theta: Theta, batch: Sequence[Example], cotangents: Cotangents, normalized: bool = True
    ) -> tuple[Scores, Theta]:
        """By the workers' backpropagation, over a share of the examples each."""
        return self._gradient("gradient", theta, batch, cotangents, normalized)

    def lens_gradient(
        self, theta: Theta, batch: Sequence[Example], cotangents: Cotangents, normalized: bool = True
    ) -> tuple[Scores, Theta]:
        return self._gradient("lens_gradient", theta, batch, cotangents, normalized)

    def generate(
        self, theta: Theta, probes: Sequence[Probe], prompts: Sequence[Example], sampling: Sampling
    ) -> list[list[TokenIds]]:
        seeds = sampling.row_seeds(len(prompts))
        pieces = self._cut(len(probes), len(prompts))
        results = self._shared(
            "generate", theta, probes, prompts, pieces, sampling=replace(sampling, seeds=None),
            of_examples=[tuple(seeds[place] for place in piece.examples) for piece in pieces],
        )  # fmt: skip
        texts: list[list[TokenIds]] = [[()] * len(prompts) for _ in probes]
        for piece, found in zip(pieces, results, strict=True):
            for place, of_probe in zip(piece.probes, found, strict=True):
                texts[place][_slice(piece.examples)] = of_probe
        return texts

    def move(self, theta: Theta, state: Mapping[str, np.ndarray], move: Move) -> tuple[Theta, Tensors]:
        """Make a move here and in the workers. One whose update is a gradient is made here alone."""
        self.sharing.tell_of(theta, state, move)
        began = time.perf_counter()
        next_theta, next_state = move.of(theta, state)
        self.sharing.moved(next_theta, time.perf_counter() - began)
        return next_theta, next_state

    def why_not(self, need: Need) -> str | None:
        if need not in self._obstacles:
            self._obstacles[need] = self._ask("why_not", need)
        return self._obstacles[need]

    def identity(self) -> str | None:
        return self._about.identity

    @contextmanager
    def _float32(self) -> Iterator[None]:
        self._in_float32 = True
        try:
            yield
        finally:
            self._in_float32 = False

    def in_float32(self) -> Any:
        return self._float32() if self._about.has_float32 else None

    def peak_memory_bytes(self) -> int:
        """The sum over the workers."""
        return sum(seat.peak_memory_bytes for seat in self.seats)

    def close(self) -> None:
        """End the workers, and Ray where it was started here; the log says what they did."""
        if self._crew is not None:
            self._crew.close()
            if self.traffic.received:
                logger.info("%s", table(self.seats, self.traffic))
            self._crew = None
        self._session.close()

    def _cut(self, num_probes: int, num_examples: int) -> list[Piece]:
        return cut(num_probes, num_examples, self.options.pieces, by_examples=self.spec.scope == "activated")

    def _gradient(
        self, method: Method, theta: Theta, batch: Sequence[Example], cotangents: Cotangents, normalized: bool
    ) -> tuple[Scores, Theta]:
        """Scores first, since a loss may compare examples; then the sum of the pieces' gradients, in their order."""
        scores = self.score(theta, [AT_THETA], batch, normalized)
        wanted = cotangents(scores)
        pieces = cut(1, len(batch), self.options.pieces, by_examples=True)
        widths = [max(len(batch[place].candidates) for place in piece.examples) for piece in pieces]
        results = self._shared(
            method, theta, [AT_THETA], batch, pieces, normalized=normalized,
            of_examples=[
                wanted[_slice(piece.examples), :width] for piece, width in zip(pieces, widths, strict=True)
            ],
        )  # fmt: skip
        total = {name: value.copy() for name, value in results[0].items()}
        for gradient in results[1:]:
            for name, value in gradient.items():
                total[name] += value
        return scores, total

    def _shared(self, method: Method, *arguments: Any, **more: Any) -> list[Any]:
        return self.sharing.share(method, *arguments, in_float32=self._in_float32, **more)

    def _ask(self, method: str, *arguments: Any) -> Any:
        """What any worker's engine says; a lost one's place is taken by the next."""
        assert self._crew is not None, "the engine is closed"
        while True:
            said = self._crew.first("ask", method, *arguments)
            if said.error is not None:
                raise said.error
            if said.gone is None:
                return said.value
            self._joining.lose(said.asked.member, said.gone)


def _slice(places: range) -> slice:
    return slice(places.start, places.stop)
