"""SGLang's scheduler, driven by hand.

`Driver` has a scheduler, and with it the model, the LoRA slots, the radix tree and the memory pools, and calls the
three steps of its loop: choose a batch, run it, take in the result. Chunked prefill, eviction and retraction are
SGLang's. Every rank of a tensor-parallel group runs the same calls and so takes the same decisions. More may be asked
for while requests run (`go_on`): what `Driver` is given then joins the batch. The scheduler is one of our own
(`driven`), or that of a server (`live.driver`).
"""

import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from zotune.engine.sglang.driven import request_class, sampler_class
from zotune.engine.sglang.jobs import Counts, Job, Passes, VisitedTokens
from zotune.engine.torch.token_choice import TokenChoice
from zotune.errors import InputError
from zotune.zo.protocol import TokenIds

_SCHEDULER = "sglang.srt.managers.scheduler:Scheduler."
_REQ = "sglang.srt.managers.schedule_batch:Req."
_TREE = "sglang.srt.mem_cache.base_prefix_cache:"
NAMES = (
    _SCHEDULER + "get_next_batch_to_run",
    _SCHEDULER + "run_batch",
    _SCHEDULER + "process_batch_result",
    _SCHEDULER + "_add_request_to_queue",
    _SCHEDULER + "flush_cache",
    _REQ + "extend_len",
    "sglang.srt.managers.schedule_batch:ScheduleBatch",
    "sglang.srt.mem_cache.common:release_kv_cache",
    "sglang.srt.model_executor.model_runner:ModelRunner.sample",
    "sglang.srt.sampling.sampling_params:SamplingParams.normalize",
    "sglang.srt.mem_cache.radix_cache:RadixKey",
    _TREE + "MatchPrefixParams",
    _TREE + "BasePrefixCache.match_prefix",
    _TREE + "BasePrefixCache.lock",
    _TREE + "BasePrefixCache.unlock",
)


class Driver:
    """One rank. `lora_ids` name the slots, None the bare model."""

    def __init__(self, scheduler: Any, lora_ids: Sequence[str | None]) -> None:
        self.scheduler = scheduler
        self.lora_ids = lora_ids
        self.request_class: Any = request_class()
        self.sampler: Any = sampler_class()()
        self.counts = Counts()
        self.before_pass: Callable[[list[VisitedTokens]], None] | None = None
        self.whole = 0  # tokens of the jobs that the next pass must not cut in two
        self._number = 0

    @property
    def runner(self) -> Any:
        return self.scheduler.tp_worker.model_runner

    @property
    def model(self) -> torch.nn.Module:
        return self.runner.model

    @property
    def lora(self) -> Any:
        return self.runner.lora_manager

    @property
    def capacity(self) -> int:
        """Tokens of KV that fit."""
        return self.scheduler.max_total_num_tokens

    # ---- the tree ------------------------------------------------------------------------------------------------

    def cached(self, tokens: TokenIds, namespace: str | None = None) -> tuple[int, Any]:
        """How many of the first tokens lie in the tree, and the node where they end."""
        from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
        from sglang.srt.mem_cache.radix_cache import RadixKey

        found = self.scheduler.tree_cache.match_prefix(MatchPrefixParams(key=RadixKey(array("q", tokens), namespace)))
        return found.device_prefix_len, found.last_device_node

    def lock(self, node: Any) -> Any:
        """Keep a node, and what leads to it, from being evicted until `unlock`."""
        return self.scheduler.tree_cache.lock(node)

    def unlock(self, locks: Iterable[Any]) -> None:
        for lock in locks:
            self.scheduler.tree_cache.unlock(lock)

    def namespace(self, name: str) -> str:
        """Where in the tree something lies under that name until `flush`."""
        return f"zotune-{name}"

    def flush(self) -> None:
        """Forget everything that is cached."""
        assert self.scheduler.flush_cache(empty_cache=False), "requests are still running"

    # ---- the scheduler, and others who use it -----------------------------------------------------------------------

    def turn(self) -> AbstractContextManager[None]:
        """Inside, the scheduler's queues and batches are ours."""
        return nullcontext()

    @property
    def most_in_pass(self) -> int:
        """How many tokens a pass may have."""
        return self.scheduler.chunked_prefill_size or sys.maxsize

    def may_wait(self) -> bool:
        """Whether what does not run now may run later, when others have gone."""
        return False

    # ---- running -------------------------------------------------------------------------------------------------

    def run(self, jobs: Sequence[Job]) -> Passes[None]:
        """Run all to their end; SGLang packs them into batches as its memory and limits allow."""
        if self.before_pass is None:
            yield from self._run(jobs)
            return
        for some in self._whole_in_passes(jobs):
            self.whole = sum(job.most_computed for job in some)
            try:
                yield from self._run(some)
            finally:
                self.whole = 0

    def go_on(
        self, jobs: Sequence[Job], choice: TokenChoice, ended: Callable[[Sequence[Job]], Sequence[Job]]
    ) -> Passes[None]:
        """Run jobs that write texts, and those that follow them, in one batch.

        Args:
            ended: is told of jobs as soon as they are done, between two passes, and gives more of them.
        """
        self.sampler.choice = choice
        try:
            yield from self._run(jobs, ended)
        finally:
            self.sampler.choice = None

    def _whole_in_passes(self, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        """So many jobs at a time that the limit of tokens in a pass, which may change in between, cuts none in two."""
        some, size = list[Job](), 0
        for job in jobs:
            if some and size + job.most_computed > self.most_in_pass:
                yield some
                some, size = [], 0
            some.append(job)
            size += job.most_computed
        yield some

    @torch.inference_mode()
    def _run(self, jobs: Sequence[Job], ended: Callable[[Sequence[Job]], Sequence[Job]] | None = None) -> Passes[None]:
        self._started: set[str] = set()
        unfinished: dict[str, tuple[Any, Job]] = {}
        with self.turn():
            self._add(jobs, unfinished)
        while True:
            with self.turn():
                done = self._pass(unfinished)
                if done and ended:
                    self._add(ended(done), unfinished)
            if done is None and not (unfinished and self.may_wait()):
                break
            yield
        if unfinished:
            request, job = next(iter(unfinished.values()))
            with self.turn():
                self.scheduler.waiting_queue = []
            raise InputError(self._too_long(job, request))

    def _pass(self, unfinished: dict[str, tuple[Any, Job]]) -> list[Job] | None:
        """Run the next batch; the jobs that it brought to their end, None where nothing is left that runs."""
        batch = self._next_batch()
        if batch is not None:
            try:
                self._run_batch(batch, unfinished)
            except Exception:
                self._give_back(batch)
                raise
        self.scheduler.last_batch = batch
        return None if batch is None else [self._take(req, unfinished) for req in batch.reqs if req.finished()]

    def _next_batch(self) -> Any:
        scheduler = self.scheduler
        plan = scheduler.get_next_batch_to_run(running_batch=scheduler.running_batch, last_batch=scheduler.last_batch)
        scheduler.running_batch, scheduler.cur_batch_for_debug = plan.running_batch, plan.batch_to_run
        return plan.batch_to_run

    def _give_back(self, batch: Any) -> None:
        """The memory of a batch that failed, which nobody else would give back; what others run now is their own."""
        from sglang.srt.managers.schedule_batch import ScheduleBatch
        from sglang.srt.mem_cache.common import release_kv_cache

        scheduler = self.scheduler
        if self.before_pass is not None:
            self.before_pass([])
        for request in batch.reqs:
            if request.kv.holds_kv:
                release_kv_cache(request, scheduler.tree_cache, checkpoint=False)
        scheduler.last_batch = scheduler.chunked_req = None
        if not batch.forward_mode.is_extend():
            scheduler.running_batch = ScheduleBatch(reqs=[], batch_is_full=False)

    def _add(self, jobs: Sequence[Job], unfinished: dict[str, tuple[Any, Job]]) -> None:
        for job in jobs:
            request = self._request(job)
            unfinished[request.rid] = (request, job)
            self.scheduler._add_request_to_queue(request)

    def _take(self, request: Any, unfinished: dict[str, tuple[Any, Job]]) -> Job:
        """The job of a request that is finished, with what came of it."""
        job = unfinished.pop(request.rid)[1]
        self.counts.retractions += request.retraction_count
        if type(request.finished_reason).__name__ == "FINISH_ABORT":
            raise InputError(self._too_long(job, request))
        if job.text is not None:
            job.new_tokens = tuple(request.output_ids_through_stop)
        return job

    def _run_batch(self, batch: Any, jobs: dict[str, tuple[Any, Job]]) -> None:
        scheduler = self.scheduler
        extends = batch.forward_mode.is_extend()
        started = []
        for request in batch.reqs if extends else ():
            job = jobs[request.rid][1]
            if request.rid not in self._started:
                started.append(request)
                self.counts.tokens_cached += request.prefix_len
                if job.exact:
                    assert request.prefix_len == job.max_cached, "a prompt was evicted while it was locked"
            self.counts.tokens_computed += request.extend_len
        self._started.update(request.rid for request in started)
        if not extends:
            self.counts.tokens_computed += len(batch.reqs)
        self.counts.forward_passes += 1
        scored = [
            (index, request, jobs[request.rid][1])
            for index, request in enumerate(batch.reqs if extends else ())
            if request.inflight_middle_chunks <= 0 and jobs[request.rid][1].num_scored
        ]
        if self.before_pass is not None:
            self.before_pass(self._visited_tokens(batch, jobs) if extends else [])
        if self.sampler.choice is not None:
            texts = [(request, jobs[request.rid][1].text) for request in batch.reqs]
            self.sampler.rows = (
                np.array([0 if text is None else text.prompt for _, text in texts]),
                np.array([len(request.output_ids) for request, _ in texts]),
            )
        result = scheduler.run_batch(batch)
        if self.before_pass is not None:
            self.before_pass([])  # what others run now is nobody's
        if scored:
            rows = [index for index, _, _ in scored]
            last = _log_probs(result.logits_output.next_token_logits[rows], [job.token_ids for _, _, job in scored])
        scheduler.process_batch_result(batch, result)
        for (_, request, job), values in zip(scored, last if scored else (), strict=True):
            inner = request.logprob.input_token_ids_logprobs_val or []
            job.log_probs = [*inner[1:], values]

    def _visited_tokens(self, batch: Any, jobs: dict[str, tuple[Any, Job]]) -> list[VisitedTokens]:
        """Those of a pass, whose tokens lie request after request.

        Raises:
            InputError: a pass has a part of a job's.
        """
        found, begin, places = [], 0, self.runner.req_to_token_pool.req_to_token
        for request, number in zip(batch.reqs, batch.req_pool_indices_cpu.tolist(), strict=True):
            job, end = jobs[request.rid][1], request.prefix_len + request.extend_len
            positions = tuple(range(max(len(job.tokens) - job.num_visited, request.prefix_len), end))
            if len(positions) not in (0, job.num_visited):
                raise InputError(
                    f"--estimator lens: {len(job.tokens)} tokens are more than a pass takes, and those behind "
                    "the prompt are cut in two; raise --sglang.chunked-prefill-size"
                )
            if positions:
                indices = tuple(begin + position - request.prefix_len for position in positions)
                found.append(VisitedTokens(job, indices, positions, places[number, :end]))
            begin += request.extend_len
        return found

    def _request(self, job: Job) -> Any:
        from sglang.srt.sampling.sampling_params import SamplingParams

        text = job.text
        sampling = SamplingParams(  # `sampler` chooses the tokens
            max_new_tokens=text.max_new_tokens if text else 0,
            stop_token_ids=list(text.stop_token_ids) or None if text else None,
            temperature=0.0,
        )
        sampling.normalize(None)
        sampling.verify(self.scheduler.model_config.vocab_size)
        self._number += 1
        inner = job.num_scored > 1
        request = self.request_class(
            f"zotune-{self._number}",
            "",
            array("q", job.tokens),
            sampling,
            return_logprob=inner,
            token_ids_logprob=list(job.token_ids) if inner else None,
            lora_id=None if job.slot is None else self.lora_ids[job.slot],
            vocab_size=self.scheduler.model_config.vocab_size,
        )
        request.logprob_start_len = len(job.tokens) - job.num_scored if inner else len(job.tokens)
        if text is not None:
            request.logprob_start_len = -1
        request.extra_key = job.namespace
        request.skip_radix_cache_insert = not job.keep
        request.max_cached = job.max_cached
        return request

    def _too_long(self, job: Job, request: Any) -> str:
        reason = getattr(request.finished_reason or request.to_finish, "message", None) or "it waits for ever"
        return (
            f"--engine sglang: {len(job.tokens)} tokens do not run with room for {self.capacity} tokens "
            f"of KV ({reason}); raise --sglang.max-total-tokens or lower --max-length"
        )


def _log_probs(logits: torch.Tensor, token_ids: Sequence[tuple[int, ...]]) -> list[list[float]]:
    """Of logits [rows, vocabulary], the log-probabilities of each row's tokens, in float32."""
    widest = max(map(len, token_ids))
    index = torch.tensor([(*ids, *(0,) * (widest - len(ids))) for ids in token_ids], device=logits.device)
    logits = logits.float()
    values = logits.gather(1, index) - logits.logsumexp(dim=1, keepdim=True)
    return [row[: len(ids)] for row, ids in zip(values.tolist(), token_ids, strict=True)]
