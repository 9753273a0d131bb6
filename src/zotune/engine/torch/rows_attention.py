"""Attention of rows that are being continued, as an attention function of transformers.

A token sees what its group of rows has before it, whose keys and values are there once for all, and what its own row
has. The two parts are computed apart, the first for all rows of a group in one product, and joined by their
normalizers:

    output = (2^(m1 - m) o1 + 2^(m2 - m) o2) / (2^(m1 - m) s1 + 2^(m2 - m) s2)

where of each part m is the largest score, s the sum of 2^(score - m), o that of the values so weighted. Scores are to
base 2, whose powers are quicker than those of e.
"""

import math
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import record_function

from zotune.engine.torch.attention import check_plain
from zotune.engine.torch.rows_kv import FirstKV, Prefix, RowsKV

Part = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Sums of weighted values [.., queries, size], the largest scores and the sums of weights [.., queries, 1]."""


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    *,
    rows_kv: FirstKV | RowsKV,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [rows, heads, tokens, size] -> [rows, tokens, heads, size].

    Raises:
        TypeError: the model asks for more than attention, such as sinks or a cap on scores.
    """
    check_plain(kwargs)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    query, key, value = (tensor.to(rows_kv.dtype) for tensor in (query, key, value))
    with record_function("zotune::attention"):
        keys, values = rows_kv.extended(layer, key, value)
        rows, heads, count, size = query.shape
        kv_heads = keys.shape[1]
        if rows_kv.own_mask is None:
            output = scaled_dot_product_attention(
                query, keys, values, is_causal=True, scale=scaling, enable_gqa=heads != kv_heads
            )
            return output.transpose(1, 2), None
        # [rows, kv heads, heads a kv head, tokens, size]
        by_head = (query * (math.log2(math.e) * (size**-0.5 if scaling is None else scaling))).reshape(
            rows, kv_heads, -1, count, size
        )
        scores = _scores(by_head.flatten(2, 3), keys)
        scores.view(rows, kv_heads, -1, count, scores.shape[-1]).add_(rows_kv.own_mask)
        own, most, total = _part(scores, values)
        if rows_kv.prefix is not None:
            before, most_before, total_before = _of_prefix(by_head.flatten(2, 3), rows_kv.prefix, layer)
            most_of_all = torch.maximum(most, most_before)
            weight, weight_before = (most - most_of_all).exp2_(), (most_before - most_of_all).exp2_()
            own = own * weight + before * weight_before
            total = total * weight + total_before * weight_before
        output = (own / total).to(query.dtype).view(rows, heads, count, -1)
        return output.transpose(1, 2), None


def _of_prefix(queries: torch.Tensor, prefix: Prefix, layer: int) -> Part:
    """Queries [rows, kv heads, queries, size] over what their groups have before them."""
    keys, values = prefix.of(layer)
    apart = prefix.rows.apart(queries).transpose(1, 2)  # [groups, kv heads, rows of a group, queries, size]
    scores = _scores(apart.flatten(2, 3), keys)
    if prefix.mask is not None:
        scores += prefix.mask
    parts = torch.cat(_part(scores, values), dim=-1).view(*apart.shape[:4], -1)
    parts = prefix.rows.together(parts.transpose(1, 2))
    return parts[..., :-2], parts[..., -2:-1], parts[..., -1:]


def _scores(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """[.., queries, tokens], in float32."""
    products = torch.bmm(queries.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2))
    return products.view(*queries.shape[:3], -1).float()


def _part(scores: torch.Tensor, values: torch.Tensor) -> Part:
    most = scores.amax(dim=-1, keepdim=True)
    weights = scores.sub_(most).exp2_()
    total = weights.sum(dim=-1, keepdim=True)
    sums = torch.bmm(weights.to(values.dtype).flatten(0, 1), values.flatten(0, 1))
    return sums.view(*scores.shape[:3], -1).float(), most, total
