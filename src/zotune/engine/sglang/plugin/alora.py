"""Activated LoRA (aLoRA, arXiv 2504.12397) in any SGLang server: adapters that act from their invocation on.

An adapter folder of PEFT's whose `adapter_config.json` has `alora_invocation_tokens` is activated by those tokens: at
the start of their last occurrence in the prompt, as PEFT does it. Everything before is computed by the base model, so

1. a request finds that part of its prompt in the radix tree's base namespace, where plain requests and other activated
   adapters put theirs, and looks there no further than its invocation;
2. it leaves there what it computed before its invocation, and nothing of what it computed after;
3. in its forward passes the adapter acts on the tokens from the invocation on (`segments`).

So no KV is ever computed twice for being shared, and none that an adapter changed is ever found by another request.
A prompt without the invocation is served by the base model, as PEFT does it. Where SGLang works in a way that this was
not made for, the adapter or the request is refused with the reason.
"""

import functools
import logging
from collections.abc import Sequence
from typing import Any

from zotune.engine.sglang.plugin import segments
from zotune.engine.sglang.plugin.segments import InvokedId

_MODULES = "sglang.srt."
HOOKS = _MODULES + "plugins.hook_registry:HookRegistry.register"
QUEUE = _MODULES + "managers.scheduler:Scheduler._add_request_to_queue"
MATCH = _MODULES + "managers.schedule_batch:Req._compute_max_prefix_len"
INSERT = _MODULES + "mem_cache.unified_radix_cache:UnifiedRadixCache.checkpoint"
LOAD = _MODULES + "lora.lora_manager:LoRAManager.validate_new_adapter"
NAMES = (
    HOOKS,
    QUEUE,
    MATCH,
    INSERT,
    LOAD,
    _MODULES + "managers.schedule_batch:Req.set_finish_with_abort",
    _MODULES + "mem_cache.base_prefix_cache:BasePrefixCache.supports_mamba",
    _MODULES + "mem_cache.base_prefix_cache:BasePrefixCache.supports_swa",
    *segments.NAMES,
)
BACKENDS = ("torch_native", "triton", "csgmv")

logger = logging.getLogger("zotune")


def register() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for name, hook in ((QUEUE, _queue), (MATCH, _match), (INSERT, _insert), (LOAD, _load)):
        HookRegistry.register(name.replace(":", "."), hook, HookType.AROUND)
    segments.register()


def last_occurrence(tokens: Sequence[int], invocation: Sequence[int]) -> int | None:
    """Where the last occurrence of `invocation` in `tokens` starts; None where there is none."""
    wanted = list(invocation)
    for start in range(len(tokens) - len(wanted), -1, -1):
        if tokens[start] == wanted[0] and list(tokens[start : start + len(wanted)]) == wanted:
            return start
    return None


def _invocation(config: Any) -> list[int] | None:
    """What activates the adapter of SGLang's LoRAConfig; None for an ordinary one."""
    return config.hf_config.get("alora_invocation_tokens")


def _load(original: Any, lora: Any, config: Any, ref: Any) -> None:
    original(lora, config, ref)
    if _invocation(config) is None:
        return
    if reason := _cannot_serve(lora, config):
        raise ValueError(f"Failed to load {ref.lora_name}: it is an activated LoRA (alora_invocation_tokens), {reason}")


def _cannot_serve(lora: Any, config: Any) -> str | None:
    invocation = _invocation(config)
    if not (isinstance(invocation, list) and invocation and all(type(token) is int for token in invocation)):
        return f"but its alora_invocation_tokens are {invocation!r}; they must be a list of token ids"
    if lora.lora_backend.name not in BACKENDS:
        return f"and --lora-backend is {lora.lora_backend.name}; use {', '.join(BACKENDS)}"
    if lora.max_loras_per_batch < 2:
        return "which shares a batch with the base model: --max-loras-per-batch must be at least 2"
    if "lm_head" in config.target_modules:
        return "and adapts lm_head, which is not supported"
    if lora.attn_dp_enabled:
        return "which is not supported with data-parallel attention"
    if lora.enable_lora_overlap_loading:
        return "which is not supported with --enable-lora-overlap-loading"
    if lora.speculative_algorithm is not None:
        return f"which is not supported with --speculative-algorithm {lora.speculative_algorithm}"
    return None


def _queue(original: Any, scheduler: Any, req: Any, *args: Any, **kwargs: Any) -> None:
    """Before a request is queued, find out where its adapter starts; a retracted request knows already."""
    lora_id = req.lora_id
    if lora_id is not None and not isinstance(lora_id, InvokedId):
        lora = scheduler.tp_worker.model_runner.lora_manager
        config = lora.configs.get(lora_id)
        if lora_id not in lora.lora_refs:  # unloaded while the request was on its way: SGLang would end with an error
            req.lora_id = None
            req.set_finish_with_abort("The adapter of this request has been unloaded.")
        if config is not None and (invocation := _invocation(config)) is not None:
            _invoke(req, invocation, lora.lora_refs[lora_id].lora_name)
            if reason := _cannot_run(scheduler, req):
                req.set_finish_with_abort(f"An activated LoRA is not supported with {reason}.")
    original(scheduler, req, *args, **kwargs)


def _invoke(req: Any, invocation: list[int], name: str) -> None:
    start = last_occurrence(req.origin_input_ids, invocation)
    req.extra_key = (req.extra_key or "").replace(req.lora_id, "", 1) or None  # the base model's namespace
    if start is None:
        _say_once(f"{name}: a prompt lacks its invocation tokens {invocation}; the base model answers")
    req.lora_id = None if start is None else InvokedId(req.lora_id, start)


@functools.lru_cache
def _say_once(sentence: str) -> None:
    logger.warning(sentence)


def _cannot_run(scheduler: Any, req: Any) -> str | None:
    from sglang.srt.disaggregation.utils import DisaggregationMode
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

    tree = scheduler.tree_cache
    if scheduler.disaggregation_mode != DisaggregationMode.NULL:
        return "prefill and decode on separate servers"
    if type(tree) is not UnifiedRadixCache or tree.supports_mamba() or tree.supports_swa():
        return "this model's or server's kind of prefix cache (sliding window, state space, LMCache, FlexKV)"
    if req.session is not None and req.session.streaming:
        return "streaming sessions, which keep the KV of earlier answers; use ordinary requests"
    if not scheduler.is_generation:
        return "embedding models"
    return None


def _match(original: Any, req: Any, input_len: int) -> int:
    longest = original(req, input_len)
    return min(longest, req.lora_id.start) if isinstance(req.lora_id, InvokedId) else longest


def _insert(original: Any, tree: Any, req: Any, *, up_to: int, **kwargs: Any) -> None:
    if isinstance(req.lora_id, InvokedId):
        up_to = min(up_to, req.lora_id.start)
    original(tree, req, up_to=up_to, **kwargs)
