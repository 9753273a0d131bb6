"""An engine whose scores are constant and take as long as it is told: what is left is the wire, queue and moves.

One process may play many workers: each has its own `Worker`, and they take their time side by side.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

import zotune.engine.ray.engine as ray_engine
from zotune.adapter.spec import LoraSpec
from zotune.engine.kind import EngineKind, EngineRequest
from zotune.engine.ray.crew import Crew, Member, Seat
from zotune.engine.ray.messages import Call
from zotune.engine.ray.options import RayOptions
from zotune.engine.ray.worker import Worker
from zotune.engine.scores import empty_scores
from zotune.zo.protocol import EngineStats, Example, Probe, Scores, Theta

BATCH = [Example(tuple(range(n, n + 50)), (5, 6), ((7,), (8,)), n % 2) for n in range(10, 26)]


class ConstantEngine:
    """Takes `seconds` for a pair of a probe and an example."""

    weights = None

    def __init__(self, spec: Any, num_numbers: int, seconds: float) -> None:
        self.spec, self.seconds, self.stats = spec, seconds, EngineStats()
        self.tensor_shapes = {f"layers.{layer}.lora_B.weight": (num_numbers // 60, 5) for layer in range(12)}

    def why_not(self, need: str) -> None:
        """Whatever is asked for."""

    def identity(self) -> None:
        """There are no weights."""

    def in_float32(self) -> None:
        """It is of no precision."""

    def score(self, theta: Theta, probes: Sequence[Probe], batch: Sequence[Example], normalized: bool = True) -> Scores:
        time.sleep(self.seconds * len(probes) * len(batch))
        self.stats.forward_passes += 1
        num_tokens, log_probs = empty_scores(len(probes), batch)
        of_probes = np.array([0.001 * (probe.seed % 7) for probe in probes], dtype=np.float32)
        log_probs += of_probes[:, None, None] * np.array([1, -1], dtype=np.float32)
        return Scores(log_probs, num_tokens)

    def peak_memory_bytes(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class ConstantKind(EngineKind):
    """Opens it without a model."""

    num_numbers: int
    seconds: float = 0.0
    loads_model = True

    def open(self, request: EngineRequest) -> Any:
        return ConstantEngine(request.spec, self.num_numbers, self.seconds)


class ConstantWorker(Worker):
    """A worker that reads no configuration of a model, and draws no directions for scores that do not need them."""

    def _begin(self, call: Call, theta: Theta) -> None:
        self.probes = list(call.probes)

    def open(self, opening: Any) -> Any:
        import zotune.engine.torch.loading as loading

        loading.load_config = lambda *arguments: None  # type: ignore[assignment]
        return super().open(opening)


class Stage:
    """A process that plays workers."""

    def __init__(self) -> None:
        self.workers: dict[int, ConstantWorker] = {}

    def play(self, number: int, what: str, *arguments: Any) -> Any:
        worker = self.workers.setdefault(number, ConstantWorker())
        return getattr(worker, what)(*arguments)


class Played:
    """The handle of one of its workers."""

    def __init__(self, stage: Any, number: int) -> None:
        self.stage, self.number = stage, number

    def __getattr__(self, what: str) -> Any:
        played = self

        class Method:
            def options(self, **_: Any) -> Any:
                return self

            def remote(self, *arguments: Any) -> Any:
                return played.stage.play.remote(played.number, what, *arguments)

        return Method()


class PlayedCrew(Crew):
    """Workers that are played by a few processes, in turns of their numbers."""

    num_stages = 1
    threads = 1

    def _start(self, seat: Seat) -> Member:
        if not hasattr(self, "stages"):
            made = ray.remote(Stage).options(num_cpus=0, max_concurrency=self.threads)
            self.stages = [made.remote() for _ in range(self.num_stages)]
        return Member(seat, Played(self.stages[seat.number % self.num_stages], seat.number), since=time.monotonic())

    def _end(self, member: Member) -> None:
        if self.members and member is self.members[-1]:
            for stage in self.stages:
                ray.kill(stage)


def constant_engine(
    num_numbers: int, seconds: float, num_workers: int, pieces: int, num_stages: int = 1, scope: str = "activated"
) -> ray_engine.RayEngine:
    """A Ray engine over constant ones."""
    PlayedCrew.num_stages = num_stages
    PlayedCrew.threads = -(-num_workers // num_stages) if seconds else 1  # those who sleep do so side by side
    ray_engine.Crew = PlayedCrew  # type: ignore[misc]
    spec = LoraSpec(4, 8.0, ("q_proj",), (5, 6) if scope == "activated" else None)
    request = EngineRequest("none", None, spec, "float32", "cpu")  # type: ignore[arg-type]
    options = RayOptions(num_workers=num_workers, pieces=pieces)
    engine = ray_engine.RayEngine(request, options, ConstantKind(num_numbers, seconds))
    if num_workers > num_stages:  # those of a process wait for each other, and are not late for that
        engine.sharing._least_late_s = 3600.0
    return engine
