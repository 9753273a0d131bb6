"""Attention of a prefill over cached tokens on a CPU, at the cost of the new tokens alone.

SGLang's `torch_native` backend computes the attention of every cached token again and throws it away, so a reused
prompt saves it nothing there. This computes the same sums for the new tokens only. Cross-attention, sliding windows
and attention that is not causal are left to SGLang.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

EXTEND = "sglang.srt.layers.attention.torch_native_backend:TorchNativeAttnBackend._run_sdpa_forward_extend"
NAMES = ("sglang.srt.plugins.hook_registry:HookRegistry.register", EXTEND)


def register() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(EXTEND.replace(":", "."), _extend, HookType.AROUND)


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
