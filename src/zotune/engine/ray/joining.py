"""How a worker joins: it arrives, opens its engine, and is tried; then it takes part, at whatever step the run is.

The first to arrive measures what the run starts from, which the others are given. The first to be tried is the measure
of the others: one with other base weights is left out, and one with other scores unless they are tolerated.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from zotune.adapter.start import has_lens
from zotune.engine.kind import EngineKind, EngineRequest, Measured
from zotune.engine.ray.crew import MOST_FAILED, Crew, Member, Said
from zotune.engine.ray.messages import About, Opening, Trial
from zotune.engine.ray.options import RayOptions
from zotune.errors import TrainingError
from zotune.zo.protocol import Example

logger = logging.getLogger("zotune")
PATIENCE_S = 30.0
ALL_HERE_S = 60.0  # before the first piece
NUM_TRIED = 2


class Joining:
    """Of the workers of one run.

    Args:
        room_on_a_node: how many workers may find themselves on one machine, whose memory they share.

    Raises:
        InputError: the first worker cannot open its engine.
    """

    def __init__(
        self, crew: Crew, kind: EngineKind, request: EngineRequest, options: RayOptions, room_on_a_node: int
    ) -> None:
        self.crew, self._kind, self._options, self._here = crew, kind, options, room_on_a_node
        self._request = request
        self._reference: Trial | None = None
        self._examples: list[Example] = []
        self._opener: Member | None = None
        for member in crew.members:
            crew.ask(member, "arrive")
        self.about: About | None = None
        self._wait_for_first()

    def _wait_for_first(self) -> None:
        since = time.monotonic()
        while self.about is None:
            for said in self.crew.wait(1.0):
                self.hear(said)
            if time.monotonic() - since > PATIENCE_S and self._opener is None:
                logger.warning("no worker has a place yet: the cluster has no room for %s", self.crew.needs)
                since = time.monotonic()

    def hear(self, said: Said) -> None:
        """What a worker that joins has said, or that it is gone.

        Raises:
            TrainingError: no seat is left to be filled.
        """
        member, what = said.asked.member, said.asked.what
        if said.gone is not None:
            self.lose(member, said.gone, failed=not member.takes_part)
        elif said.error is not None:
            if self.about is None:
                raise said.error
            logger.warning("%s is left out: %s", member.name, said.error)
            self.leave_out(member)
        elif what == "arrive":
            self._open(member)
        elif what == "open":
            self._opened(member, said.value)
        elif what == "trial":
            self._tried(member, said.value)

    def try_with(self, examples: Sequence[Example]) -> None:
        """Examples to try workers with, once there are any; then those are waited for that come soon."""
        if self._examples:
            return
        self._examples = [_scorable(example) for example in examples[:NUM_TRIED]]
        for member in self.crew.members:
            if member.about:
                self.crew.ask(member, "trial", self._examples)
        until = time.monotonic() + ALL_HERE_S
        while not all(member.takes_part for member in self.crew.members) and time.monotonic() < until:
            for said in self.crew.wait(1.0):
                self.hear(said)
        if late := [str(member.seat.number) for member in self.crew.members if not member.takes_part]:
            logger.warning("beginning without %s; they may join at any step", "workers " + ", ".join(late))

    def lose(self, member: Member, why: str, failed: bool = False) -> None:
        """A worker is gone; another one is started in its seat, unless openings keep failing there."""
        if member not in self.crew.members:  # another of its answers has said so
            return
        seat = member.seat
        seat.lost += 1
        seat.num_failed += failed
        again = seat.num_failed < MOST_FAILED
        logger.warning("%s is lost (%s)%s", member.name, why, "; another one is started" if again else "")
        self._gone(member)
        self.crew.lose(member, refill=again)
        if again:
            self.crew.ask(self.crew.members[-1], "arrive")
        self._check_any_left()

    def leave_out(self, member: Member) -> None:
        """End a worker that is not wanted, and leave its seat empty."""
        self._gone(member)
        self.crew.lose(member, refill=False)
        self._check_any_left()

    def _gone(self, member: Member) -> None:
        if member is self._opener and self.about is None:
            self._opener = None
            for other in self.crew.members:  # one that has arrived takes its place
                if other is not member:
                    self.crew.ask(other, "arrive")
                    break

    def _check_any_left(self) -> None:
        if not self.crew.members:
            raise TrainingError("--engine ray: no worker is left, and none could be started again")

    def _open(self, member: Member) -> None:
        if self._opener is None:
            self._opener = member
        if member.is_opening:
            return
        if member is self._opener or self.about is not None:
            member.is_opening = True
            opening = Opening(self._kind, self._request, self._options.num_cpus_per_worker, self._here)
            self.crew.ask(member, "open", opening)

    def _opened(self, member: Member, about: About) -> None:
        member.about, member.seat.host, member.seat.num_failed = about, about.host, 0
        if self.about is None:
            self.about = about
            spec = about.spec
            measured: frozenset[Measured] = frozenset()
            if "lens" in self._request.measured and not has_lens(spec.start):
                measured = frozenset({"lens"})
            self._request = replace(
                self._request, spec=spec, measured=measured, start_from=self._request.start_from if measured else ()
            )
            for other in self.crew.members:  # those that had arrived by then
                if other is not member:
                    self.crew.ask(other, "arrive")
        elif about.identity != self.about.identity:
            logger.warning("%s is left out: its base weights are others", member.name)
            self.leave_out(member)
            return
        if self._examples:
            self.crew.ask(member, "trial", self._examples)

    def _tried(self, member: Member, trial: Trial) -> None:
        assert member.about
        if self._reference is None:
            self._reference, self._machine = trial, member.about.machine
        elif trial.digest != self._reference.digest:
            off = float(np.abs(np.subtract(trial.scores, self._reference.scores)).max())
            tolerated = self._options.unequal == "tolerate"
            logger.warning(
                "%s (%s) scores otherwise than the first worker (%s), by up to %.2g: %s", member.name,
                member.about.machine, self._machine, off,
                "the last bits of this run depend on who computes what" if tolerated
                else "it is left out; --ray.unequal tolerate takes it",
            )  # fmt: skip
            if not tolerated:
                self.leave_out(member)
                return
        member.takes_part, member.since = True, time.monotonic()
        member.seat.rejoined += member.seat.num_started > 1


def _scorable(example: Example) -> Example:
    """An example with something to score: a prompt to be written behind has none."""
    if all(example.candidates):
        return example
    return replace(example, candidates=(example.prompt[-1:] or example.invocation[-1:],))
