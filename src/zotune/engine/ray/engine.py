"""The Ray engine, as the trainer's process sees it: it cuts each call into pieces, and hands them to workers until all
are there. It keeps the engine contract, and makes the moves of theta (`zo.moves`), so that seeds and scalars are what
is sent in a step.
"""

import logging
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import ray

from zotune.engine.kind import EngineKind, EngineRequest
from zotune.engine.ray.crew import ORDERS_AHEAD, Asked, Crew, Member
from zotune.engine.ray.cut import Piece, cut
from zotune.engine.ray.joining import PATIENCE_S, Joining
from zotune.engine.ray.messages import Answer, Call, Following, Method, Order, Part
from zotune.engine.ray.options import RayOptions
from zotune.engine.ray.queue import Handed, PieceLost, WorkQueue
from zotune.engine.ray.report import Traffic, table
from zotune.engine.ray.session import Session
from zotune.engine.ray.thetas import Thetas
from zotune.engine.scores import empty_scores
from zotune.errors import TrainingError
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
from zotune.zo.updates import Slopes

logger = logging.getLogger("zotune")
LONGEST_WAIT_S = 1.0


@dataclass(frozen=True, eq=False)
class Task:
    """A call that is being shared out: its parts, its examples by their numbers, and the queue of the parts."""

    call: Call
    parts: Sequence[Part]
    examples: Mapping[int, Example]
    queue: WorkQueue


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
        self._thetas = Thetas()
        self._numbers: dict[Example, int] = {}
        self._owners: dict[int, Member] = {}  # who has the prompt of an example
        self._num_calls = 0
        self.num_orders_of_last_call = 0
        self._in_float32 = False
        self._obstacles: dict[Need, str | None] = {}
        self._peaks: dict[int, int] = {}

    # ---- the contract --------------------------------------------------------------------------------------------

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
        if isinstance(move.update, Slopes):
            before, after = self._thetas.number(theta).number, self._thetas.announce()
            following = Following(before, after, move)
            size, stored = len(pickle.dumps(following)), None
            for member in self._workers.at_work:
                if before not in member.thetas or member.is_late:
                    continue
                if not member.has_state and stored is None:
                    stored = ray.put(dict(state))
                if not member.has_state:
                    self.traffic.wholes += sum(value.nbytes for value in state.values())
                self._workers.tell(member, "follow", following, None if member.has_state else stored)
                member.thetas.add(after)
                self.traffic.sent += size
        self.traffic.moves += 1
        next_theta, next_state = move.of(theta, state)
        self._thetas.number(next_theta)
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
        return sum(self._peaks.values())

    def close(self) -> None:
        """End the workers, and Ray where it was started here; the log says what they did."""
        if self._crew is not None:
            self._crew.close()
            if self.traffic.received:
                logger.info("%s", table(self.seats, self.traffic))
            self._crew = None
        self._session.close()

    # ---- sharing out ---------------------------------------------------------------------------------------------

    @property
    def _workers(self) -> Crew:
        assert self._crew is not None, "the engine is closed"
        return self._crew

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

    def _shared(
        self, method: Method, theta: Theta, probes: Sequence[Probe], batch: Sequence[Example],
        pieces: Sequence[Piece], of_examples: Sequence[Any] | None = None, **more: Any,
    ) -> list[Any]:  # fmt: skip
        """What the workers found of each piece."""
        self._joining.try_with(batch)
        numbers = [self._numbers.setdefault(example, len(self._numbers)) for example in batch]
        parts = [
            Part(number, piece.probes, tuple(numbers[place] for place in piece.examples),
                 of_examples[number] if of_examples else None)
            for number, piece in enumerate(pieces)
        ]  # fmt: skip
        main = self._thetas.number(theta)
        bases = [None if probe.base is None else self._thetas.number(probe.base) for probe in probes]
        digests = {numbered.number: numbered.digest for numbered in (main, *bases) if numbered is not None}
        call = Call(
            self._num_calls, method, main.number, digests,
            tuple(probe if probe.base is None else replace(probe, base=None) for probe in probes),
            tuple(None if base is None else base.number for base in bases),
            in_float32=self._in_float32, **more,
        )  # fmt: skip
        self._num_calls += 1
        queue = WorkQueue([piece.size for piece in pieces], [self._owner(part) for part in parts])
        self._run(Task(call, parts, dict(zip(numbers, batch, strict=True)), queue))
        self.num_orders_of_last_call = queue.num_handed
        return [queue.results[number] for number in range(len(parts))]

    def _owner(self, part: Part) -> Member | None:
        """Who has most of the prompts of a part, where prompts are kept."""
        if self.spec.scope != "activated":
            return None
        owners = [self._owners[number] for number in part.examples if number in self._owners]
        owners = [owner for owner in owners if owner.takes_part and not owner.is_late]
        return max(owners, key=owners.count, default=None)

    def _run(self, task: Task) -> None:
        """Hand out, and hear what comes, until every piece is there."""
        last = time.monotonic()
        while not task.queue.is_done:
            now = time.monotonic()
            self._hand_out(task, now)
            heard = self._workers.wait(max(0.0, min(task.queue.next_due() - now, LONGEST_WAIT_S)))
            for said in heard:
                if said.asked.what != "work":
                    self._joining.hear(said)
                elif said.gone is not None:
                    self._lost(said.asked.member, said.gone, task.queue)
                elif said.error is None:
                    self._heard(said.asked, said.value)
                elif said.asked.task is task:
                    raise said.error
            if heard:
                last = time.monotonic()
            elif time.monotonic() - last > PATIENCE_S:
                last = time.monotonic()
                logger.warning("no worker has answered for %.0f s; waiting", PATIENCE_S)

    def _hand_out(self, task: Task, now: float) -> None:
        for member in task.queue.late_workers(now):
            assert isinstance(member, Member)
            if not member.is_late:
                member.is_late = True
                member.seat.late += 1
                logger.info("%s is late: others are given its work", member.name)
        ready = [member for member in self._workers.at_work if not member.is_late]
        paces = {member: member.paces.get(task.call.method) for member in ready}
        for ahead in range(ORDERS_AHEAD):  # everybody has something before anybody has more
            for member in ready:
                if member.num_orders == ahead and (handed := task.queue.take(member, paces, now)) is not None:
                    self._order(member, handed, task)

    def _order(self, member: Member, handed: Handed, task: Task) -> None:
        parts = tuple(task.parts[number] for number in handed.numbers)
        unseen = {number for part in parts for number in part.examples} - member.examples
        lacking = [number for number in task.call.digests if number not in member.thetas]
        order = Order(task.call, parts, {number: task.examples[number] for number in sorted(unseen)}, tuple(lacking))
        wholes = [self._stored(number) for number in lacking]
        self._workers.ask(member, "work", order, *wholes, handed=handed, task=task)
        member.examples |= unseen
        member.thetas |= set(lacking)
        self.traffic.sent += len(pickle.dumps(order))
        self.traffic.wholes += sum(self._thetas[number].num_bytes for number in lacking)

    def _stored(self, number: int) -> Any:
        """A theta in Ray's object store, from where each machine has it once."""
        numbered = self._thetas[number]
        if numbered.stored is None:
            numbered.stored = ray.put(dict(numbered.theta))
        return numbered.stored

    def _heard(self, asked: Asked, answer: Answer) -> None:
        member, handed, task = asked.member, asked.handed, asked.task
        assert handed is not None
        member.is_late = False
        self.traffic.received += len(pickle.dumps(answer))
        if not answer.results:
            member.thetas -= set(answer.lacks_thetas)
            member.examples -= set(answer.lacks_examples)
            member.seat.rebuilt += bool(answer.wrong)
            if answer.wrong:
                logger.warning("%s has another theta than the driver; it is given the right one", member.name)
            task.queue.give_back(handed)
            return
        task.queue.answer(handed, answer.results)
        member.has_state = answer.has_state
        member.learn_pace(task.call.method, handed.size, answer)
        seat = member.seat
        seat.pieces += len(answer.results)
        seat.tokens += answer.stats.tokens_computed
        seat.busy_s += answer.seconds
        self._peaks[seat.number] = max(self._peaks.get(seat.number, 0), answer.peak_memory_bytes)
        for name, count in asdict(answer.stats).items():
            setattr(self.stats, name, getattr(self.stats, name) + count)
        self._owners |= {example: member for number in answer.results for example in task.parts[number].examples}

    def _lost(self, member: Member, why: str, queue: WorkQueue) -> None:
        self._joining.lose(member, why)
        try:
            queue.lose(member)
        except PieceLost as error:
            raise TrainingError(f"--engine ray: {error}; is its memory enough?") from None

    def _ask(self, method: str, *arguments: Any) -> Any:
        """What any worker's engine says; a lost one's place is taken by the next."""
        while True:
            said = self._workers.first("ask", method, *arguments)
            if said.error is not None:
                raise said.error
            if said.gone is None:
                return said.value
            self._joining.lose(said.asked.member, said.gone)


def _slice(places: range) -> slice:
    return slice(places.start, places.stop)
