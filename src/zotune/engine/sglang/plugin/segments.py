"""Two adapters in one sequence: the split of a forward batch at the invocations of activated LoRA adapters.

SGLang gives every sequence of a batch one LoRA slot. An activated adapter acts from its invocation on, and the tokens
before it are the base model's. So the batch is described to SGLang's LoRA manager as more and shorter sequences: what
lies before an invocation as one without an adapter, the rest as one with it. All its LoRA backends read nothing but
these lengths and slots, so none is touched. Attention, sampling and the cache see the batch as it was.

Where the adapter starts travels in the adapter's id, which SGLang hands from the request to the batch unread.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

_LORA = "sglang.srt.lora.lora_manager:LoRAManager."
PREPARE = _LORA + "prepare_lora_batch"
GRAPH = _LORA + "can_use_prefill_cuda_graph"
VALIDATE = _LORA + "validate_lora_batch"
FETCH = _LORA + "fetch_new_loras"
NAMES = (
    PREPARE,
    GRAPH,
    VALIDATE,
    FETCH,
    "sglang.srt.lora.mem_pool:LoRAMemoryPool.get_buffer_id",
    "sglang.srt.lora.backend.base_backend:BaseLoRABackend._prepare_lm_head_batch_info",
    "sglang.srt.model_executor.forward_batch_info:ForwardMode.is_extend_or_draft_extend_or_mixed",
)


class InvokedId(str):
    """The id of an adapter in a request that invokes it: equal to the plain id, and knows the first adapted token.

    Args:
        start: the position in the prompt where the adapter begins to act.
    """

    start: int

    def __new__(cls, lora_id: str, start: int = 0) -> "InvokedId":
        invoked = super().__new__(cls, lora_id)
        invoked.start = start
        return invoked


@dataclass(frozen=True)
class Segment:
    """`length` tokens of a sequence after its first `prefix_len`, all under one adapter; None is the base model."""

    lora_id: str | None
    prefix_len: int
    length: int


def split(lora_ids: Sequence[str | None], prefix_lens: Sequence[int], lens: Sequence[int]) -> list[Segment]:
    """The segments of sequences that add `lens` tokens to `prefix_lens` earlier ones. Idempotent."""
    segments = []
    for lora_id, prefix_len, length in zip(lora_ids, prefix_lens, lens, strict=True):
        start = lora_id.start if isinstance(lora_id, InvokedId) else 0
        num_base = min(max(start - prefix_len, 0), length)
        if num_base:
            segments.append(Segment(None, prefix_len, num_base))
        if num_base < length:
            segments.append(Segment(lora_id, prefix_len + num_base, length - num_base))
    return segments


def register() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for name, hook in ((PREPARE, _prepare), (GRAPH, _can_use_graph), (VALIDATE, _validate), (FETCH, _fetch)):
        HookRegistry.register(name.replace(":", "."), hook, HookType.AROUND)


def _segmented(batch: Any) -> Any:
    """SGLang's forward batch as its LoRA manager is to see it; the same one where nothing is to be split."""
    mode = batch.forward_mode
    if not any(isinstance(lora_id, InvokedId) for lora_id in batch.lora_ids or ()):
        return batch
    if not mode.is_extend_or_draft_extend_or_mixed():
        return batch  # decoding: every token lies after the invocation
    segments = split(batch.lora_ids, batch.extend_prefix_lens_cpu, batch.extend_seq_lens_cpu)
    ids, lens = [segment.lora_id for segment in segments], [segment.length for segment in segments]
    if ids == list(batch.lora_ids):
        return batch
    view = copy.copy(batch)
    view.lora_ids, view.batch_size = ids, len(ids)
    view.extend_prefix_lens_cpu, view.extend_seq_lens_cpu = [segment.prefix_len for segment in segments], lens
    view.extend_seq_lens = torch.tensor(lens, dtype=batch.extend_seq_lens.dtype, device=batch.extend_seq_lens.device)
    view.return_logprob = False  # read only for the rows of the LM head, which `_prepare` does itself
    return view


def _prepare(original: Any, lora: Any, batch: Any) -> None:
    view = _segmented(batch)
    original(lora, view)
    if view is batch or lora.lm_head_module is None:
        return
    backend = lora.lora_backend
    slots = [lora.memory_pool.get_buffer_id(lora_id) for lora_id in batch.lora_ids]  # one for each sequence's rows
    rows = backend._prepare_lm_head_batch_info(batch, slots, backend.batch_info)
    if rows is not None:
        backend.lm_head_batch_info, backend.lm_head_pass_batch_infos = rows


def _can_use_graph(original: Any, lora: Any, batch: Any) -> bool:
    return original(lora, _segmented(batch))


def _validate(original: Any, lora: Any, lora_ids: set[str | None]) -> bool:
    return original(lora, lora_ids | _needed_beside(lora_ids))


def _fetch(original: Any, lora: Any, new_loras: set[str | None], running_loras: Any = frozenset()) -> None:
    original(lora, new_loras | _needed_beside(new_loras | running_loras), set(running_loras))


def _needed_beside(lora_ids: set[str | None]) -> set[str | None]:
    """The base model, where an activated adapter is: tokens before its invocation need a slot without an adapter."""
    return {None} if any(isinstance(lora_id, InvokedId) for lora_id in lora_ids) else set()
