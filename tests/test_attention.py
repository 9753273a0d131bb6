"""Attention of probes side by side gives the numbers of plain attention, row by row and padded alike."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zotune.engine.torch import attention as attention_file
from zotune.engine.torch.attention import PromptKV, attention

SIZE = 8
TOLERANCE = 1e-6  # fp32 sums of a few dozen terms of size 1, in another order


@st.composite
def passes(draw):
    """Shapes of a pass: runs of each row's prompt, kv heads, query heads a kv head, probes, suffix."""
    prompts = draw(st.lists(st.lists(st.integers(1, 9), max_size=3), min_size=1, max_size=4))
    return prompts, *(draw(st.integers(1, 3)) for _ in range(4)), draw(st.integers(0, 99))


@settings(max_examples=60)
@given(passes())
def test_it_equals_attention_over_prompt_and_own_tokens_row_by_row(shapes):
    prompts, kv_heads, share, probes, suffix, seed = shapes
    draw = torch.Generator().manual_seed(seed)
    runs = [[torch.randn(2, 2, kv_heads, n, SIZE, generator=draw) for n in prompt] for prompt in prompts]
    rows, count = len(prompts), probes * suffix
    query = torch.randn(rows, kv_heads * share, count, SIZE, generator=draw)
    key, value = (torch.randn(rows, kv_heads, count, SIZE, generator=draw) for _ in range(2))
    visible = torch.from_numpy(np.tri(suffix, dtype=bool))[None].repeat(rows, 1, 1)
    module = torch.nn.Module()
    module.layer_idx = 1  # type: ignore[assignment]

    expected = torch.empty(rows, count, kv_heads * share, SIZE)
    for row, pieces in enumerate(runs):
        past = torch.cat([run[1] for run in pieces], dim=2) if pieces else torch.empty(2, kv_heads, 0, SIZE)
        for probe in range(probes):
            own = slice(probe * suffix, (probe + 1) * suffix)
            keys = torch.cat([past[0], key[row, :, own]], dim=1).repeat_interleave(share, dim=0)
            values = torch.cat([past[1], value[row, :, own]], dim=1).repeat_interleave(share, dim=0)
            mask = torch.cat([torch.ones(suffix, past.shape[2], dtype=torch.bool), visible[row]], dim=1)
            seen = torch.nn.functional.scaled_dot_product_attention(query[row, :, own], keys, values, mask, scale=0.3)
            expected[row, own] = seen.transpose(0, 1)

    for padded in (False, True):  # as on a CPU, and as elsewhere
        kv = PromptKV(runs, visible, probes)
        if padded and any(runs):
            kv._padded = attention_file.padded_by_head(runs, torch.device("cpu"))
        output, _ = attention(module, query, key, value, None, scaling=0.3, prompt_kv=kv)
        torch.testing.assert_close(output, expected, rtol=TOLERANCE, atol=TOLERANCE)
