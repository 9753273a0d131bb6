"""How a call of the engine is shared out: its pieces are handed to the workers until all are there.

What a worker is believed to have, thetas and examples, is not sent again; where that is wrong, the worker says so.
"""

import logging
import pickle
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import ray

from zotune.engine.ray.crew import ORDERS_AHEAD, Asked, Crew, Member
from zotune.engine.ray.cut import Piece
from zotune.engine.ray.joining import PATIENCE_S, Joining
from zotune.engine.ray.messages import Answer, Call, Following, Method, Order, Part
from zotune.engine.ray.queue import LATE, LEAST_LATE_S, Handed, Paces, PieceLost, WorkQueue
from zotune.engine.ray.report import Traffic
from zotune.engine.ray.thetas import Thetas
from zotune.errors import TrainingError
from zotune.zo.moves import Move
from zotune.zo.protocol import EngineStats, Example, Probe, Theta
from zotune.zo.updates import Slopes

logger = logging.getLogger("zotune")
LONGEST_WAIT_S = 1.0


@dataclass(frozen=True, eq=False)
class Task:
    """A call that is shared out: where Ray has it, and its size in bytes; its parts, its examples by their numbers, and
    the queue of the parts."""

    call: Call
    stored: Any
    size: int
    parts: Sequence[Part]
    examples: Mapping[int, Example]
    queue: WorkQueue


class Sharing:
    """Of one engine. It counts in `stats` what ran, and in `traffic` what was sent.

    Args:
        keeps_prompts: whether workers keep the KV of prompts, so that a piece is best computed where its prompts are.
    """

    def __init__(
        self, crew: Crew, joining: Joining, stats: EngineStats, traffic: Traffic, *, keeps_prompts: bool
    ) -> None:
        self._crew, self._joining, self.stats, self.traffic = crew, joining, stats, traffic
        self._keeps_prompts = keeps_prompts
        self.thetas = Thetas()
        self._numbers: dict[Example, int] = {}
        self._owners: dict[int, Member] = {}  # who has the prompt of an example
        self._num_calls = 0
        self._least_late_s = LEAST_LATE_S
        self.num_orders_of_last_call = 0

    def tell_of(self, theta: Theta, state: Mapping[str, np.ndarray], move: Move) -> None:
        """Have the workers make a move. One whose update is a gradient is not sent: it is as large as theta."""
        if isinstance(move.update, Slopes):
            before, after = self.thetas.number(theta).number, self.thetas.announce()
            following = Following(before, after, move)
            size, stored = len(pickle.dumps(following)), None
            for member in self._crew.at_work:
                if before not in member.thetas or member.is_late:
                    continue
                if not member.has_state and stored is None:
                    stored = ray.put(dict(state))
                if not member.has_state:
                    self.traffic.wholes += sum(value.nbytes for value in state.values())
                self._crew.tell(member, "follow", following, None if member.has_state else stored)
                member.thetas.add(after)
                self.traffic.sent += size
        self.traffic.moves += 1

    def moved(self, theta: Theta, seconds: float) -> None:
        """The theta of the move that workers were told of, which took so long here; it takes them as long or longer."""
        self.thetas.number(theta)
        self._least_late_s = LEAST_LATE_S + LATE * seconds

    def share(
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
        main = self.thetas.number(theta)
        bases = [None if probe.base is None else self.thetas.number(probe.base) for probe in probes]
        digests = {numbered.number: numbered.digest for numbered in (main, *bases) if numbered is not None}
        call = Call(
            self._num_calls, method, main.number, digests,
            tuple(probe if probe.base is None else replace(probe, base=None) for probe in probes),
            tuple(None if base is None else base.number for base in bases),
            **more,
        )  # fmt: skip
        self._num_calls += 1
        queue = WorkQueue([piece.size for piece in pieces], [self._owner(part) for part in parts], self._least_late_s)
        size = len(pickle.dumps(call))
        self._run(Task(call, ray.put(call), size, parts, dict(zip(numbers, batch, strict=True)), queue))
        self.num_orders_of_last_call = queue.num_handed
        return [queue.results[number] for number in range(len(parts))]

    def _owner(self, part: Part) -> Member | None:
        """Who has most of the prompts of a part, where prompts are kept."""
        if not self._keeps_prompts:
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
            heard = self._crew.wait(max(0.0, min(task.queue.next_due() - now, LONGEST_WAIT_S)))
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
        ready = [member for member in self._crew.at_work if not member.is_late]
        paces = Paces({member: member.paces.get(task.call.method) for member in ready})
        for ahead in range(ORDERS_AHEAD):  # everybody has something before anybody has more
            for member in ready:
                if member.num_orders == ahead:
                    handed = task.queue.take(member, paces, now)
                    if handed is None:
                        return
                    self._order(member, handed, task)

    def _order(self, member: Member, handed: Handed, task: Task) -> None:
        parts = tuple(task.parts[number] for number in handed.numbers)
        unseen = {number for part in parts for number in part.examples} - member.examples
        lacking = [number for number in task.call.digests if number not in member.thetas]
        examples = {number: task.examples[number] for number in sorted(unseen)}
        order = Order(parts, examples, tuple(lacking))
        wholes = [self._stored(number) for number in lacking]
        self._crew.ask(member, "work", order, task.stored, *wholes, handed=handed, task=task)
        member.examples |= unseen
        member.thetas |= set(lacking)
        self.traffic.sent += len(pickle.dumps(order)) + task.size
        self.traffic.wholes += sum(self.thetas[number].num_bytes for number in lacking)

    def _stored(self, number: int) -> Any:
        """A theta in Ray's object store, from where each machine has it once."""
        numbered = self.thetas[number]
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
        seat.peak_memory_bytes = max(seat.peak_memory_bytes, answer.peak_memory_bytes)
        for name, count in asdict(answer.stats).items():
            setattr(self.stats, name, getattr(self.stats, name) + count)
        self._owners |= {example: member for number in answer.results for example in task.parts[number].examples}

    def _lost(self, member: Member, why: str, queue: WorkQueue) -> None:
        self._joining.lose(member, why)
        try:
            queue.lose(member)
        except PieceLost as error:
            raise TrainingError(f"--engine ray: {error}; is its memory enough?") from None
