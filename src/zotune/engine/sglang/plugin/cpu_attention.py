"""Attention over cached tokens on a CPU: of a prefill at the cost of the new tokens, and of many sequences' next token.

In a prefill, SGLang's `torch_native` backend computes the attention of every cached token again and throws it away, so
a reused prompt saves it nothing there. This computes the same sums for the new tokens only. To decode, it takes the
sequences one after the other, in kernels that are made for many queries. Here some of like length are two products,
in float32. Cross-attention, sliding windows and attention that is not causal are left to SGLang.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

_BACKEND = "sglang.srt.layers.attention.torch_native_backend:TorchNativeAttnBackend."
EXTEND = _BACKEND + "_run_sdpa_forward_extend"
DECODE = _BACKEND + "_run_sdpa_forward_decode"
NAMES = ("sglang.srt.plugins.hook_registry:HookRegistry.register", EXTEND, DECODE)
AT_ONCE = 16  # sequences whose next token is computed together: of a processor's caches' size


def register() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(EXTEND.replace(":", "."), _extend, HookType.AROUND)
    HookRegistry.register(DECODE.replace(":", "."), _decode, HookType.AROUND)


def _extend(
    original: Callable[..., torch.Tensor],
    backend: Any,
    query: torch.Tensor,  # [new tokens of all sequences, heads, size]
    output: torch.Tensor,
    k_cache: torch.Tensor,  # [slots, key heads, size]
    v_cache: torch.Tensor,
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    extend_prefix_lens: torch.Tensor,
    extend_seq_lens: torch.Tensor,
    encoder_lens: torch.Tensor | None = None,
    scaling: float | None = None,
    enable_gqa: bool = False,
    causal: bool = False,
    is_cross_attn: bool = False,
    sliding_window_size: int | None = None,
) -> torch.Tensor:
    if encoder_lens is not None or is_cross_attn or not causal or sliding_window_size is not None:
        return original(
            backend, query, output, k_cache, v_cache, req_to_token, req_pool_indices, seq_lens, extend_prefix_lens,
            extend_seq_lens, encoder_lens, scaling, enable_gqa, causal, is_cross_attn, sliding_window_size,
        )  # fmt: skip
    start = 0
    lengths = zip(req_pool_indices.tolist(), seq_lens.tolist(), extend_seq_lens.tolist(), strict=True)
    for request, total, new in lengths:
        slots = req_to_token[request, :total]
        keys = k_cache.index_select(0, slots).to(query.dtype).transpose(0, 1)[None]
        values = v_cache.index_select(0, slots).to(query.dtype).transpose(0, 1)[None]
        past = total - new
        seen = torch.ones(new, total, dtype=torch.bool, device=query.device).tril(past) if past else None
        attended = scaled_dot_product_attention(
            query[start : start + new].transpose(0, 1)[None], keys, values, attn_mask=seen, is_causal=seen is None,
            scale=scaling, enable_gqa=enable_gqa,
        )  # fmt: skip
        output[start : start + new] = attended[0].transpose(0, 1)
        start += new
    return output


def _decode(
    original: Callable[..., torch.Tensor],
    backend: Any,
    query: torch.Tensor,  # [sequences, heads, size]
    output: torch.Tensor,
    k_cache: torch.Tensor,  # [slots, key heads, size]
    v_cache: torch.Tensor,
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    encoder_lens: torch.Tensor | None = None,
    scaling: float | None = None,
    enable_gqa: bool = False,
    causal: bool = False,
    is_cross_attn: bool = False,
    sliding_window_size: int | None = None,
) -> torch.Tensor:
    if encoder_lens is not None or is_cross_attn or causal or sliding_window_size is not None:
        return original(
            backend, query, output, k_cache, v_cache, req_to_token, req_pool_indices, seq_lens, encoder_lens, scaling,
            enable_gqa, causal, is_cross_attn, sliding_window_size,
        )  # fmt: skip
    num_kv_heads, size = k_cache.shape[1:]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    for rows in seq_lens.argsort().split(AT_ONCE):
        lengths = seq_lens[rows, None]
        inside = torch.arange(int(lengths.max()), device=query.device) < lengths
        slots = req_to_token[req_pool_indices[rows], : inside.shape[1]].long()
        slots = torch.where(inside, slots, slots[:, :1])  # what lies behind a sequence's end may be no numbers
        keys, values = (
            cache.index_select(0, slots.flatten()).float().view(*slots.shape, num_kv_heads, -1).transpose(1, 2)
            for cache in (k_cache, v_cache)
        )
        queries = query[rows].float().view(len(rows), num_kv_heads, -1, size)
        scores = (queries @ keys.transpose(2, 3) * scale).masked_fill(~inside[:, None, None], -torch.inf)
        attended = scores.softmax(dim=-1) @ values
        output[rows] = attended.flatten(1, 2).to(output.dtype)
    return output
