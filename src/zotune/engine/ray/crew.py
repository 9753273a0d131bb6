"""The workers of a run: actors of Ray, each in a seat that is filled again when its worker is lost.

A worker is opened, then tried, and takes part from then on. The first one decides what the others are held to: the base
weights, and the scores of the trial.
"""

import logging
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from zotune.engine.ray.messages import About, Answer
from zotune.engine.ray.queue import Handed
from zotune.engine.ray.worker import Worker
from zotune.errors import TrainingError

logger = logging.getLogger("zotune")
MOST_FAILED = 5  # openings of a seat, one after the other
ORDERS_AHEAD = 2  # of a worker, so that it need not wait for the driver
PACE_MEMORY = 0.7


@dataclass(eq=False)
class Seat:
    """What is remembered of the workers of a seat, one after the other."""

    number: int
    num_started: int = 0
    num_failed: int = 0  # openings, since the last that went well
    host: str = ""
    pieces: int = 0
    tokens: int = 0
    busy_s: float = 0.0
    here_s: float = 0.0
    lost: int = 0
    rejoined: int = 0
    late: int = 0
    rebuilt: int = 0
    peak_memory_bytes: int = 0


@dataclass(eq=False)
class Member:
    """A worker that is there, and what the driver knows of it."""

    seat: Seat
    actor: Any
    about: About | None = None
    since: float = 0.0
    takes_part: bool = False
    is_late: bool = False
    is_opening: bool = False
    thetas: set[int] = field(default_factory=set)
    examples: set[int] = field(default_factory=set)
    has_state: bool = False
    paces: dict[str, float] = field(default_factory=dict)
    num_orders: int = 0

    @property
    def name(self) -> str:
        return f"worker {self.seat.number}" + (f" on {self.about.host}" if self.about else "")

    def learn_pace(self, method: str, size: int, answer: Answer) -> None:
        """How fast it was, over the orders of late."""
        found = size / max(answer.seconds, 1e-9)
        before = self.paces.get(method)
        self.paces[method] = found if before is None else PACE_MEMORY * before + (1 - PACE_MEMORY) * found


@dataclass(frozen=True, eq=False)
class Asked:
    """What an answer will be the answer to."""

    member: Member
    what: str
    handed: Handed | None = None
    task: Any = None


@dataclass(frozen=True, eq=False)
class Said:
    """An answer; or, where the worker is gone, why."""

    asked: Asked
    value: Any = None
    gone: str | None = None
    error: BaseException | None = None


class Crew:
    """All workers.

    Args:
        size: how many there are to be.
        resources: of an actor, by the words of Ray.
    """

    def __init__(self, size: int, resources: dict[str, float]) -> None:
        self._name = f"zotune-{uuid.uuid4().hex[:6]}"
        self._resources = resources
        self._asked: dict[Any, Asked] = {}
        self.seats = [Seat(number) for number in range(size)]
        self.members: list[Member] = [self._start(seat) for seat in self.seats]

    def _start(self, seat: Seat) -> Member:
        seat.num_started += 1
        name = f"{self._name}-worker-{seat.number}" + (f"-{seat.num_started}" if seat.num_started > 1 else "")
        made = ray.remote(Worker).options(name=name, scheduling_strategy="SPREAD", max_restarts=0, **self._resources)
        return Member(seat, made.remote(), since=time.monotonic())

    @property
    def needs(self) -> str:
        """What a worker needs of a machine, in words."""
        return " and ".join(f"{amount:g} {name[4:-1].upper()}" for name, amount in self._resources.items() if amount)

    @property
    def at_work(self) -> list[Member]:
        """Those that take part."""
        return [member for member in self.members if member.takes_part]

    def ask(self, member: Member, what: str, *arguments: Any, handed: Handed | None = None, task: Any = None) -> None:
        """Call a method of a worker; `wait` has the answer."""
        reference = getattr(member.actor, what).options(name=f"zotune {what}").remote(*arguments)
        self._asked[reference] = Asked(member, what, handed, task)
        member.num_orders += what == "work"

    def tell(self, member: Member, what: str, *arguments: Any) -> None:
        """The same, where no answer is waited for."""
        getattr(member.actor, what).options(name=f"zotune {what}").remote(*arguments)

    def wait(self, timeout_s: float) -> list[Said]:
        """What has been answered by now; waits for the first answer at most so long."""
        waiting = list(self._asked)
        if not waiting:
            time.sleep(min(timeout_s, 0.05))
            return []
        ready, rest = ray.wait(waiting, timeout=timeout_s)
        if ready and rest:
            ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        return [self._said(reference) for reference in ready]

    def _said(self, reference: Any) -> Said:
        asked = self._asked.pop(reference)
        asked.member.num_orders -= asked.what == "work"
        try:
            return Said(asked, ray.get(reference))
        except RayTaskError as error:  # raised in the worker by the engine
            return Said(asked, error=error.cause if isinstance(error.cause, BaseException) else error)
        except (RayActorError, RayError) as error:
            return Said(asked, gone=type(error).__name__)

    def lose(self, member: Member, refill: bool = True) -> None:
        """A worker is gone, or is not wanted any more."""
        if member not in self.members:
            return
        self.members.remove(member)
        self._end(member)
        member.takes_part = False
        for reference in [found for found, asked in self._asked.items() if asked.member is member]:
            del self._asked[reference]
        if refill:
            self.members.append(self._start(member.seat))

    def _end(self, member: Member) -> None:
        if member.takes_part:
            member.seat.here_s += time.monotonic() - member.since
        ray.kill(member.actor)

    def first(self, what: str, *arguments: Any) -> Said:
        """What the first of those that take part, or have opened their engine, says; the others are not asked."""
        for member in self.at_work or [each for each in self.members if each.about]:
            asked = Asked(member, what)
            reference = getattr(member.actor, what).options(name=f"zotune {what}").remote(*arguments)
            self._asked[reference] = asked
            ray.wait([reference])
            return self._said(reference)
        raise TrainingError("--engine ray: no worker is left")

    def close(self) -> None:
        for member in self.members:
            self._end(member)
        self.members.clear()
        self._asked.clear()
