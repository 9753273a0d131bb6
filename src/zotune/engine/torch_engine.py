"""The fast engine on transformers models: every number of the plain engine, with fewer tokens computed.

Scope `activated`: prompts are base-model KV from the prefix cache. The probes of an example lie side by side in one
row, [examples, probes * suffix]; a mask lets a token see its prompt and its own probe's earlier tokens, and LoRA is a
batched product over the probes. Scope `everywhere`: a row per probe and example; what all prompts of a batch begin
with is computed once per probe. In both, candidates share their prompt and only scored positions reach the LM head.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.profiler import record_function
from transformers import PreTrainedModel

from zotune.adapter import LoraSpec
from zotune.engine.past_kv import GatheredKV, SharedKV
from zotune.engine.plain_engine import PlainEngine, empty_scores
from zotune.engine.prefix_cache import NoPrefixCache, PrefixCache
from zotune.engine.protocol import AT_THETA, Example, Probe, Sampling, Scores, Theta, TokenIds
from zotune.engine.suffix import Suffix, ancestors, make_suffix
from zotune.noise import Noise, gaussian

MIN_SHARED = 8  # tokens: below, a shared prefix costs more than it saves
MAX_LOGITS = 2**26  # numbers in one table of logits
logger = logging.getLogger("zotune")


class TorchEngine:
    """Scores probes of a LoRA adapter on a causal LM of transformers, on CPU or CUDA.

    Models whose attention does not take a mask and a cache from outside (found by a trial at the start) go through the
    plain engine, and the log says so.

    Args:
        model: the base model; it is put in evaluation mode and gets forward hooks until `close`.
        spec: the form of the adapter.
        prefix_cache: where prompts are kept, in scope `activated`.
        max_tokens_per_forward: rows are packed into forward passes of at most this many computed tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        spec: LoraSpec,
        prefix_cache: PrefixCache | None = None,
        max_tokens_per_forward: int = 8192,
    ) -> None:
        self.plain = PlainEngine(model, spec)
        self.model = self.plain.model
        self.spec = self.plain.spec
        self.stats = self.plain.stats
        self.lora = self.plain.lora
        self.cache = prefix_cache or NoPrefixCache()
        self.max_tokens_per_forward = max_tokens_per_forward
        self._positions: torch.Tensor | None = None  # [rows, scored]: what of a pass reaches the LM head
        self._window = getattr(model.config.get_text_config(), "sliding_window", None)
        self._head_hook = model.get_output_embeddings().register_forward_pre_hook(self._keep_scored)
        self.plain_reason = self._try_out()
        if self.plain_reason:
            logger.info("every token will be computed, without reuse: %s", self.plain_reason)

    @property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        return self.plain.tensor_shapes

    @torch.inference_mode()
    def score(self, theta: Theta, probes: Sequence[Probe], batch: Sequence[Example]) -> Scores:
        if self.plain_reason or not self._fits(batch):
            return self.plain.score(theta, probes, batch)
        num_tokens, log_probs = empty_scores(len(probes), batch)
        needed, before = _tokens_needed(batch) * len(probes), self.stats.tokens_computed
        score_some = self._score_activated if self.spec.scope == "activated" else self._score_everywhere
        longest = max(len(example.invocation) + max(map(len, example.candidates)) for example in batch)
        most = max(1, self.max_tokens_per_forward // longest)
        for start in range(0, len(probes), most):
            some = probes[start : start + most]
            with record_function("zotune::noise"):
                self.lora.write(points(theta, some))
            score_some(len(some), batch, log_probs[start : start + most])
        self.stats.tokens_reused += needed - (self.stats.tokens_computed - before)
        return Scores(log_probs, num_tokens)

    def generate(
        self, theta: Theta, probes: Sequence[Probe], prompts: Sequence[Example], sampling: Sampling
    ) -> list[list[TokenIds]]:
        return self.plain.generate(theta, probes, prompts, sampling)

    def peak_memory_bytes(self) -> int:
        return self.plain.peak_memory_bytes()

    def close(self) -> None:
        self._head_hook.remove()
        self.plain.close()

    # ---- scope activated -----------------------------------------------------------------------------------------

    def _score_activated(self, num_probes: int, batch: Sequence[Example], scores: np.ndarray) -> None:
        suffixes = [make_suffix(example.invocation, example.candidates) for example in batch]
        order = sorted(range(len(batch)), key=lambda i: (len(batch[i].prompt), len(suffixes[i].tokens)), reverse=True)
        for rows in self._chunks(order, suffixes, num_probes):
            size = max(len(suffixes[i].tokens) for i in rows)
            slots = [self._prompt_slots(batch[i].prompt) for i in rows]
            longest = max(map(len, slots))
            filled = [row + [0] * (longest - len(row)) for row in slots]
            input_ids = np.zeros((len(rows), size), dtype=np.int64)
            positions = np.zeros_like(input_ids)
            own = np.zeros((len(rows), size, size), dtype=bool)
            for row, i in enumerate(rows):
                count, start = len(suffixes[i].tokens), len(batch[i].prompt)
                input_ids[row, :count] = suffixes[i].tokens
                positions[row, :count] = np.add(suffixes[i].depths, start)
                own[row] = ancestors(suffixes[i], size)
            allowed = np.zeros((len(rows), num_probes, size, longest + num_probes * size), dtype=bool)
            allowed[..., :longest] = (np.arange(longest) < np.array([[len(row)] for row in slots]))[:, None, None]
            for k in range(num_probes):
                allowed[:, k, :, longest + k * size : longest + (k + 1) * size] = own
            scored = self._scored(rows, suffixes)
            starts = np.arange(num_probes)[None, :, None] * size
            self._positions = self._tensor((scored[:, None, :] + starts).reshape(len(rows), -1))
            self.lora.num_groups = len(rows)
            logits = self._forward(
                np.tile(input_ids, num_probes),
                np.tile(positions, num_probes),
                allowed.reshape(len(rows), 1, num_probes * size, -1),
                GatheredKV(self.cache.pool, self._tensor(np.array(filled)), num_probes * size),
            )
            self.stats.tokens_computed += num_probes * sum(len(suffixes[i].tokens) for i in rows)
            logits = logits.view(len(rows), num_probes, scored.shape[1], -1).transpose(0, 1)
            _add_log_probs(logits, rows, suffixes, scores)
            self.cache.trim()

    def _prompt_slots(self, prompt: TokenIds) -> list[int]:
        self.lora.active = False
        slots = self.cache.slots(prompt, self._compute_block)
        self.lora.active = True
        return slots

    def _compute_block(self, tokens: TokenIds, before: list[int], own: list[int]) -> None:
        """Fill the slots of one block: one row, so that its bits do not depend on company."""
        count, start = len(tokens), len(before)
        past = GatheredKV(self.cache.pool, self._tensor(np.array([before])), count, store=self._tensor(np.array(own)))
        allowed = np.tri(count, start + count, k=start, dtype=bool)[None, None]
        self._positions = self._tensor(np.zeros((1, 1)))
        self._forward(np.array([tokens]), np.arange(start, start + count)[None], allowed, past)
        self.stats.tokens_computed += count

    # ---- scope everywhere ----------------------------------------------------------------------------------------

    def _score_everywhere(self, num_probes: int, batch: Sequence[Example], scores: np.ndarray) -> None:
        wholes = [example.prompt + example.invocation for example in batch]
        num_shared = _common_prefix(wholes) if len(batch) > 1 else 0
        num_shared = num_shared if num_shared >= MIN_SHARED else 0
        self.lora.num_groups = 1
        shared = SharedKV(num_probes)
        if num_shared:
            input_ids = np.tile(np.array([wholes[0][:num_shared]]), (num_probes, 1))
            self._positions = self._tensor(np.zeros((num_probes, 1)))
            positions = np.tile(np.arange(num_shared), (num_probes, 1))
            causal = np.tri(num_shared, dtype=bool)[None, None].repeat(num_probes, axis=0)
            self._forward(input_ids, positions, causal, shared)
            self.stats.tokens_computed += num_probes * num_shared
            shared.complete = True
        suffixes = [
            make_suffix(whole[num_shared:], example.candidates) for whole, example in zip(wholes, batch, strict=True)
        ]
        order = sorted(range(len(batch)), key=lambda i: len(suffixes[i].tokens), reverse=True)
        for rows in self._chunks(order, suffixes, num_probes):
            size = len(suffixes[rows[0]].tokens)
            input_ids = np.zeros((len(rows), size), dtype=np.int64)
            positions = np.zeros_like(input_ids)
            for row, i in enumerate(rows):
                count = len(suffixes[i].tokens)
                input_ids[row, :count] = suffixes[i].tokens
                positions[row, :count] = np.add(suffixes[i].depths, num_shared)
            allowed = None
            if num_shared or not all(suffixes[i].is_chain for i in rows):
                allowed = np.ones((len(rows), 1, size, num_shared + size), dtype=bool)
                for row, i in enumerate(rows):
                    allowed[row, 0, :, num_shared:] = ancestors(suffixes[i], size)
                allowed = np.tile(allowed, (num_probes, 1, 1, 1))
            # Padding is on the right, so that plain causal attention, without a mask, never lets a token see it.
            scored = self._scored(rows, suffixes)
            self._positions = self._tensor(np.tile(scored, (num_probes, 1)))
            logits = self._forward(
                np.tile(input_ids, (num_probes, 1)),
                np.tile(positions, (num_probes, 1)),
                allowed,
                shared if num_shared else None,
            )
            self.stats.tokens_computed += num_probes * sum(len(suffixes[i].tokens) for i in rows)
            _add_log_probs(logits.view(num_probes, len(rows), scored.shape[1], -1), rows, suffixes, scores)

    # ---- common --------------------------------------------------------------------------------------------------

    def _chunks(self, order: list[int], suffixes: list[Suffix], num_probes: int) -> Iterator[list[int]]:
        """Examples of like length together, as many as the budgets of tokens and of logits allow."""
        vocabulary = self.model.config.get_text_config().vocab_size
        chunk: list[int] = []
        size = scored = 0
        for i in order:
            size, scored = max(size, len(suffixes[i].tokens)), max(scored, len(suffixes[i].scored))
            rows = (len(chunk) + 1) * num_probes
            if chunk and (rows * size > self.max_tokens_per_forward or rows * scored * vocabulary > MAX_LOGITS):
                yield chunk
                chunk, size, scored = [], len(suffixes[i].tokens), len(suffixes[i].scored)
            chunk.append(i)
        yield chunk

    def _scored(self, rows: list[int], suffixes: list[Suffix]) -> np.ndarray:
        """Scored nodes of each row, filled with the first: [rows, scored]."""
        scored = np.zeros((len(rows), max(len(suffixes[i].scored) for i in rows)), dtype=np.int64)
        for row, i in enumerate(rows):
            scored[row, : len(suffixes[i].scored)] = suffixes[i].scored
        return scored

    def _forward(
        self, input_ids: np.ndarray, positions: np.ndarray, allowed: np.ndarray | None, past: Any
    ) -> torch.Tensor:
        """One pass; logits at the scored positions."""
        mask = None
        if allowed is not None:
            mask = torch.zeros(allowed.shape, dtype=self.model.dtype)
            mask.masked_fill_(torch.from_numpy(~allowed), torch.finfo(self.model.dtype).min)
            mask = mask.to(self.model.device)
        self.lora.token_mask = None
        with record_function("zotune::forward"):
            logits = self.model(
                input_ids=self._tensor(input_ids),
                position_ids=self._tensor(positions),
                attention_mask=mask,
                past_key_values=past,
                use_cache=past is not None,
            ).logits
        self.stats.forward_passes += 1
        self._positions = None
        return logits

    def _keep_scored(self, module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if self._positions is None:
            return None
        hidden = args[0]
        rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None]
        return (hidden[rows, self._positions], *args[1:])

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(self.model.device)

    def _fits(self, batch: Sequence[Example]) -> bool:
        """Whether the layout serves these examples; it needs a token to compute, and full attention."""
        longest = max(len(e.prompt) + len(e.invocation) + max(map(len, e.candidates)) for e in batch)
        trunk = min(len(e.invocation if self.spec.scope == "activated" else e.prompt + e.invocation) for e in batch)
        return trunk > 0 and not (self._window and longest > self._window)

    def _try_out(self) -> str | None:
        """Why this model must go through the plain engine, or None: both score a small batch and must agree."""
        if any(module is self.model.get_output_embeddings() for module in self.lora.modules):
            return "the adapter is on the output layer"
        vocabulary = self.model.config.get_text_config().vocab_size
        ids = tuple((7 * i + 3) % vocabulary for i in range(24))
        batch = [Example(ids[:17], ids[17:19], (ids[19:20], ids[20:23])), Example(ids[5:15], ids[17:19], (ids[19:20],))]
        theta = {name: np.float32(0.1) * gaussian(1, name, shape) for name, shape in self.lora.shapes.items()}
        probes = [AT_THETA, Probe(2, 0.05)]
        stats, cache, self.cache, self.plain_reason = vars(self.stats).copy(), self.cache, NoPrefixCache(), None
        try:
            fast = self.score(theta, probes, batch).log_probs
            slow = self.plain.score(theta, probes, batch).log_probs
        except Exception as error:  # whatever a model's own code raises over arguments it does not know
            return f"{type(self.model).__name__} does not take a mask and cache from outside ({error})"
        finally:
            vars(self.stats).update(stats)
            self.cache = cache
            self._positions, self.lora.active = None, True
        tolerance = 1e-4 if self.model.dtype == torch.float32 else 5e-2
        known = np.isfinite(slow)
        if not np.allclose(fast[known], slow[known], rtol=tolerance, atol=tolerance):
            return f"{type(self.model).__name__} does not score the same with a mask and cache from outside"
        return None


def points(theta: Theta, probes: Sequence[Probe]) -> list[Theta]:
    """Each probe's tensors, as `Probe.of` gives them; a direction is drawn once for all its distances."""
    bases = [theta if probe.base is None else probe.base for probe in probes]
    drawn: dict[tuple[int, Noise, int], Theta] = {}
    result = []
    for probe, base in zip(probes, bases, strict=True):
        if not probe.distance:
            result.append(base)
            continue
        key = (probe.seed, probe.noise, id(base))
        if key not in drawn:
            drawn[key] = probe.noise.direction(probe.seed, base)
        distance, z = np.float32(probe.distance), drawn[key]
        result.append({name: value + distance * z[name] for name, value in base.items()})
    return result


def _add_log_probs(logits: torch.Tensor, rows: list[int], suffixes: list[Suffix], scores: np.ndarray) -> None:
    """Add the candidates' tokens of logits [probes, rows, scored, vocabulary] to scores [probe, example, candidate]."""
    targets = [(row, node, token) for row, i in enumerate(rows) for _, node, token in suffixes[i].targets]
    places = np.array([(i, c) for i in rows for c, _, _ in suffixes[i].targets])
    row, node, token = torch.tensor(targets, device=logits.device).unbind(dim=1)
    normalizers = torch.logsumexp(logits.float(), dim=-1)
    log_probs = logits[:, row, node, token].float() - normalizers[:, row, node]  # [probes, targets]
    for values, probe_scores in zip(log_probs.cpu().numpy(), scores, strict=True):
        np.add.at(probe_scores, (places[:, 0], places[:, 1]), values)


def _tokens_needed(batch: Sequence[Example]) -> int:
    """What the plain engine would compute for one probe: every row whole."""
    return sum(
        len(example.prompt) + len(example.invocation) + len(start)
        for example in batch
        for start in {candidate[:-1] for candidate in example.candidates}
    )


def _common_prefix(sequences: Sequence[TokenIds]) -> int:
    """How many tokens all sequences begin with, leaving each at least one of its own."""
    shortest = min(map(len, sequences)) - 1
    for index in range(shortest):
        if len({sequence[index] for sequence in sequences}) > 1:
            return index
    return max(0, shortest)
