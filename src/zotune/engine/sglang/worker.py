"""What a rank of the SGLang engine does: it writes probes into LoRA slots, and scores and generates with them.

In scope activated the prompts' KV is the base model's (`held_prompts`), and each probe adds what stands behind them.
Everywhere else each probe has a namespace of the tree of its own, which is flushed when its slot is written again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from zotune.adapter.spec import LoraSpec
from zotune.adapter.start import Start
from zotune.engine.scores import empty_scores
from zotune.engine.sglang import models, slots
from zotune.engine.sglang.driver import Driver
from zotune.engine.sglang.held_prompts import MIN_SHARED, HeldPrompts
from zotune.engine.sglang.inputs import InputWatch
from zotune.engine.sglang.jobs import Counts, Job, Passes
from zotune.engine.sglang.lens_gradient import LensGradient
from zotune.engine.sglang.population import Population
from zotune.engine.sglang.rows import Row, common_prefix, plan_rows, tokens_needed
from zotune.engine.torch.eva import MAX_TOKENS
from zotune.zo.protocol import AT_THETA, EngineStats, Example, Probe, Sampling, Scores, Theta, TokenIds


class Worker:
    """What a rank does at each command: its methods are the commands.

    Args:
        shapes: of theta's tensors.
        theta: where the trainer writes them.
        pinned: whether there are others who would take the slots.
    """

    def __init__(
        self, driver: Driver, spec: LoraSpec, shapes: Mapping[str, tuple[int, ...]], theta: Theta, pinned: bool = False
    ) -> None:
        self.driver = driver
        models.check_loaded(driver.model)
        lora_ids = [lora_id for lora_id in driver.lora_ids if lora_id is not None]
        self.slots = slots.Slots(driver.lora, lora_ids, spec, shapes, pinned) if shapes else None
        self.prompts = HeldPrompts(driver)
        self.num_slots = max(len(lora_ids), 1)  # the bare model has the place of a slot
        self.activated = spec.scope == "activated"
        self.theta, self.spec = theta, spec
        self._lens: LensGradient | None = None
        self._inputs: InputWatch | None = None
        self.reused = 0
        self._written: dict[int, tuple[int, Probe]] = {}  # by slot, the version of theta and the probe that it holds

    # ---- scoring -------------------------------------------------------------------------------------------------

    def score(
        self, version: int, probes: Sequence[Probe], batch: Sequence[Example], together: bool = False
    ) -> Passes[Scores]:
        num_tokens, log_probs = empty_scores(len(probes), batch)
        needed, before = len(probes) * tokens_needed(batch), self.driver.counts.tokens_computed
        score_some = self._score_activated if self.activated else partial(self._score_everywhere, together=together)
        for start in range(0, len(probes), self.num_slots):
            some = probes[start : start + self.num_slots]
            self._write(version, dict(enumerate(some)))
            yield from score_some(len(some), batch, log_probs[start : start + len(some)])
        self.reused += needed - (self.driver.counts.tokens_computed - before)
        return Scores(log_probs, num_tokens)

    def _write(self, version: int, probes: Mapping[int, Probe]) -> None:
        """Make the probes the adapters of their slots, where they are not, as in an evaluation of many batches."""
        new = {slot: probe for slot, probe in probes.items() if self._written.get(slot) != (version, probe)}
        if self.slots is not None and new:
            self.slots.write(self.theta, new)
            self._written |= {slot: (version, probe) for slot, probe in new.items()}

    def _score_activated(self, num_probes: int, batch: Sequence[Example], scores: np.ndarray) -> Passes[None]:
        plan = plan_rows(batch, activated=True)
        by_example: dict[int, list[Row]] = {}
        for row in (*plan.trunks, *plan.rows):
            by_example.setdefault(row.example, []).append(row)
        for chunk in self.prompts.chunks([batch[i].prompt for i in range(len(batch))]):
            rows = [row for i in chunk for row in by_example[i]]
            locks = yield from self.prompts.hold([batch[i].prompt for i in chunk])
            # A row with nothing after the prompt is the base model's, whatever the probe.
            own = [row for row in rows if len(row.tokens) > row.num_base]
            bare = [row for row in rows if len(row.tokens) == row.num_base]
            jobs = [(k, row, _job(row, slot=k, exact=True)) for k in range(num_probes) for row in own]
            base = [(row, _job(row)) for row in bare]
            try:
                yield from self.driver.run([job for _, _, job in jobs] + [job for _, job in base])
            finally:
                self.driver.unlock(locks)
            for k, row, job in jobs:
                _add(scores[k], row, job)
            for row, job in base:
                for k in range(num_probes):
                    _add(scores[k], row, job)

    def _score_everywhere(
        self, num_probes: int, batch: Sequence[Example], scores: np.ndarray, together: bool = False
    ) -> Passes[None]:
        plan = plan_rows(batch, activated=False, together=together)
        first = {row.example: row for row in (*plan.rows, *plan.trunks)}
        shared = common_prefix([row.tokens[:-1] for row in first.values()]) if len(batch) > 1 else ()
        slots = range(num_probes)
        if len(shared) >= MIN_SHARED:
            yield from self.driver.run([Job(shared, slot=k, namespace=self._namespace(k), keep=True) for k in slots])
        for rows, keep in ((plan.trunks, True), (plan.rows, False)):
            jobs = [(k, row, _job(row, slot=k, namespace=self._namespace(k), keep=keep)) for k in slots for row in rows]
            yield from self.driver.run([job for _, _, job in jobs])
            for k, row, job in jobs:
                _add(scores[k], row, job)
        self.driver.flush()

    def _namespace(self, slot: int) -> str:
        """Where the KV of a slot's adapter lies in the tree; all of it is flushed before the slot is written again."""
        return self.driver.namespace(f"probe-{slot}")

    def watched(self, version: int, batch: Sequence[Example]) -> Passes[Scores]:
        """Scores at theta; what the passes leave behind is kept for `lens_gradient`."""
        assert self.slots is not None
        if self._lens is None:
            self._lens = LensGradient(self.driver.model, self.driver.runner, self.slots, self.spec)
        with self._lens.watch.open():
            self.driver.before_pass = self._lens.watch.begin
            try:
                return (yield from self.score(version, [AT_THETA], batch, together=True))
            finally:
                self.driver.before_pass = None

    def lens_gradient(self, cotangents: np.ndarray) -> Passes[dict[str, np.ndarray]]:
        """Of sum(cotangents * log_probs), at the theta and of the batch that were watched."""
        assert self._lens is not None
        return self._lens.gradient(self.theta, cotangents)

    # ---- what goes into modules ------------------------------------------------------------------------------------

    def watch_inputs(self, version: int, batch: Sequence[Example]) -> Passes[list[str]]:
        """Keep what goes into the adapted modules, at the tokens that the adapter acts on; the names of their A."""
        assert self.slots is not None
        self._inputs = InputWatch(self.slots, max(1, MAX_TOKENS // len(batch)))
        with self._inputs.open():
            self.driver.before_pass = self._inputs.begin
            try:
                if self.activated:
                    yield from self.score(version, [AT_THETA], batch)
                else:
                    self._write(version, {0: AT_THETA})
                    whole = dict.fromkeys(
                        example.prompt + example.invocation + max(example.candidates, key=len)[:-1] for example in batch
                    )
                    where = self._namespace(0)
                    yield from self.driver.run(
                        [Job(tokens, slot=0, namespace=where, num_visited=len(tokens)) for tokens in whole]
                    )
            finally:
                self.driver.before_pass = None
        return list(self.slots.modules)

    def start_from(self, start: Start) -> None:
        assert self.slots is not None
        self.spec = self.slots.spec = replace(self.spec, start=start)
        self._inputs = self._lens = None
        self._written.clear()

    def inputs_of(self, name: str) -> np.ndarray:
        """Of the module of a matrix A, what was kept [tokens, inputs]."""
        assert self._inputs is not None
        return self._inputs.of(name)

    # ---- generation ------------------------------------------------------------------------------------------------

    def generate(
        self, version: int, probes: Sequence[Probe], prompts: Sequence[Example], sampling: Sampling
    ) -> Passes[list[list[TokenIds]]]:
        def write(places: Mapping[int, int]) -> None:
            self._write(version, {slot: probes[member] for slot, member in places.items()})

        held, before = self.prompts if self.activated else None, self.driver.counts.tokens_computed
        population = Population(self.driver, held, range(self.num_slots), write, prompts, sampling)
        texts = yield from population.texts(len(probes))
        self.reused += population.tokens_needed - (self.driver.counts.tokens_computed - before)
        return texts

    # ---- what the engine asks for besides ----------------------------------------------------------------------------

    def stats(self) -> tuple[EngineStats, Counts]:
        counts = self.driver.counts
        return EngineStats(counts.forward_passes, counts.tokens_computed, self.reused), counts

    def peak_memory_bytes(self) -> int:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        from zotune.engine.memory import peak_resident_bytes

        return peak_resident_bytes()


def _job(row: Row, **where: Any) -> Job:
    tokens = tuple(dict.fromkeys(token for _, _, token in row.targets))
    cached = row.num_base if where.get("exact") else None
    visited = len(row.tokens) - row.num_base if where.get("exact") else row.num_scored
    return Job(
        row.tokens, max_cached=cached, num_scored=row.num_scored, token_ids=tokens, row=row, num_visited=visited,
        **where,
    )  # fmt: skip


def _add(scores: np.ndarray, row: Row, job: Job) -> None:
    """Add the row's log-probabilities to scores [example, candidate]."""
    column = {token: index for index, token in enumerate(job.token_ids)}
    for c, position, token in row.targets:
        scores[row.example, c] += np.float32(job.log_probs[position][column[token]])
