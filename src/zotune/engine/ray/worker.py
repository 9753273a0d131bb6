"""A worker: one engine, the thetas and the examples that it has seen. Nothing of Ray is imported here.

It makes the moves of theta that it is told of, and computes the parts of orders. Whatever it lacks it says, and is then
given; a theta that is not, by its digest, what the driver has under that number is thrown away, and nothing is
computed with it.
"""

import hashlib
import os
import platform
import socket
import time
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from zotune.engine.ray.messages import About, Answer, Call, Following, Opening, Order, Part, Trial
from zotune.zo.digest import digest
from zotune.zo.draws import gaussian
from zotune.zo.noise_ahead import AHEAD
from zotune.zo.protocol import AT_THETA, Engine, EngineStats, Example, Probe, Theta

MAX_THETAS = 4
MAX_EXAMPLES = 2**16


class Worker:
    """What an actor of Ray runs, in a process of its own."""

    def __init__(self) -> None:
        import torch  # noqa: F401  # takes seconds, in which the first worker opens its engine

        self.engine: Engine
        self.thetas: OrderedDict[int, Theta] = OrderedDict()
        self.digests: dict[int, str] = {}
        self.state: tuple[int, Any] | None = None
        self.examples: OrderedDict[int, Example] = OrderedDict()
        self.call: Call | None = None
        self.probes: list[Probe] = []  # of that call, once it has begun

    def open(self, opening: Opening) -> About:
        """Read the weights and open the engine.

        Raises:
            InputError: they cannot be read here, or the engine cannot serve the request.
        """
        import torch

        from zotune.engine.torch.loading import free_memory_bytes, load_config, load_model

        torch.set_num_threads(opening.num_threads)
        request = opening.request
        request = replace(request, config=load_config(request.model, request.trust_remote_code))
        if not opening.kind.loads_model:
            loaded = load_model(
                request.model, request.dtype, request.device, request.trust_remote_code, request.quantization,
                request.num_labels,
            )  # fmt: skip
            request = replace(request, loaded=loaded)
            if request.kv_cache_gb is None:
                free = free_memory_bytes(loaded.device) / 2 / opening.workers_here
                request = replace(request, kv_cache_gb=free / 1e9)
        self.engine = engine = opening.kind.open(request)
        machine = f"{_processor()}, PyTorch {torch.__version__}"
        return About(
            engine.spec, dict(engine.tensor_shapes), engine.identity(), engine.in_float32() is not None,
            socket.gethostname(), os.getpid(), machine,
        )  # fmt: skip

    def ask(self, method: str, *arguments: Any) -> Any:
        """Another method of the engine."""
        return getattr(self.engine, method)(*arguments)

    def arrive(self) -> None:
        """Answered once this process is there."""

    def trial(self, examples: list[Example]) -> Trial:
        """Scores of examples at a point that every worker makes itself."""
        from zotune.adapter.forms import initial_theta

        start = initial_theta(self.engine.tensor_shapes, 0, self.engine.spec)
        theta = {name: value + np.float32(0.02) * gaussian(1, name, value.shape) for name, value in start.items()}
        found = self.engine.score(theta, [AT_THETA, Probe(2, 1e-2)], examples).log_probs
        return Trial(hashlib.sha256(found.tobytes()).hexdigest()[:16], tuple(found.ravel().tolist()))

    def follow(self, following: Following, state: Any = None) -> None:
        """Make a move of theta, where theta and the state before it are here; `state` is given where it may not be."""
        if state is None and self.state is not None and self.state[0] == following.before:
            state = self.state[1]
        if following.before not in self.thetas or state is None:
            return
        theta, next_state = following.move.of(self.thetas[following.before], state)
        self._keep(following.after, theta)
        self.state = following.after, next_state

    def work(self, order: Order, call: Call, *wholes: Theta) -> Answer:
        """The parts of an order, one after the other."""
        began = time.perf_counter()
        for number, theta in zip(order.wholes, wholes, strict=True):
            self._keep(number, {name: np.array(value) for name, value in theta.items()})  # Ray's own are of its memory
        self.examples |= order.examples
        before = asdict(self.engine.stats)
        if self.call is None or self.call.number != call.number:
            self.call, self.probes = call, []
        lacking = self._lacking(call, order)
        if lacking is not None:
            return lacking
        theta = self.thetas[call.theta]
        if not self.probes:
            self._begin(call, theta)
        inside = self.engine.in_float32() if call.in_float32 else None
        with inside or nullcontext():
            results = {part.number: self._result(call, part, theta, self.probes) for part in order.parts}
        self._forget()
        counted = asdict(self.engine.stats)
        return Answer(
            results,
            seconds=time.perf_counter() - began,
            stats=EngineStats(**{name: count - before[name] for name, count in counted.items()}),
            peak_memory_bytes=self.engine.peak_memory_bytes(),
            has_state=self.state is not None and self.state[0] == call.theta,
        )

    def _result(self, call: Call, part: Part, theta: Theta, probes: list[Probe]) -> Any:
        batch = [self.examples[number] for number in part.examples]
        some = [probes[place] for place in part.probes]
        if call.method == "score":
            return self.engine.score(theta, some, batch, call.normalized)
        if call.method == "generate":
            assert call.sampling is not None
            return self.engine.generate(theta, some, batch, replace(call.sampling, seeds=part.of_examples))
        differentiate = self.engine.gradient if call.method == "gradient" else self.engine.lens_gradient
        return differentiate(theta, batch, lambda scores: part.of_examples, call.normalized)[1]

    def _lacking(self, call: Call, order: Order) -> Answer | None:
        """What is missing for an order, or was otherwise."""
        wrong = tuple(
            number for number, known in call.digests.items() if number in self.thetas and self._digest(number) != known
        )
        for number in wrong:
            del self.thetas[number]
        thetas = tuple(number for number in call.digests if number not in self.thetas)
        wanted = {number for part in order.parts for number in part.examples}
        examples = tuple(sorted(wanted - self.examples.keys()))
        if not thetas and not examples:
            return None
        return Answer(lacks_thetas=thetas, lacks_examples=examples, wrong=wrong)

    def _digest(self, number: int) -> str:
        if number not in self.digests:
            self.digests[number] = digest(self.thetas[number])
        return self.digests[number]

    def _keep(self, number: int, theta: Theta) -> None:
        self.thetas[number] = theta
        self.thetas.move_to_end(number)
        self.digests.pop(number, None)

    def _forget(self) -> None:
        """What was not used for long; the driver sends it again where it is wanted."""
        while len(self.thetas) > MAX_THETAS:
            number, _ = self.thetas.popitem(last=False)
            self.digests.pop(number, None)
        while len(self.examples) > MAX_EXAMPLES:
            self.examples.popitem(last=False)

    def _begin(self, call: Call, theta: Theta) -> None:
        """The probes of a call are the same objects in all its orders, so that an engine may keep them in place. Their
        directions are drawn once, for the probes and for the move that will be made of them."""
        self.probes = [
            probe if base is None else replace(probe, base=self.thetas[base])
            for probe, base in zip(call.probes, call.bases, strict=True)
        ]
        seeds = list(dict.fromkeys(probe.seed for probe in call.probes if probe.distance or probe.derivative))
        if seeds:
            AHEAD.start(call.probes[-1].noise, seeds, theta)
        for number in call.digests:
            self.thetas.move_to_end(number)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123  # a file of the system
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
