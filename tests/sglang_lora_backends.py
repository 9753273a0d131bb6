"""SGLang's LoRA kernels on segments, run by Triton's interpreter on the CPU: python tests/sglang_lora_backends.py

Prints, for each backend, the largest difference from the product computed token by token, and the largest product.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

import json
from types import SimpleNamespace
from typing import Any

import torch
from sglang.kernels.ops.lora.dense import lora_tuning_config
from sglang.srt.lora.backend import chunked_backend
from sglang.srt.lora.backend.lora_registry import get_backend_from_name
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from zotune.engine.sglang.plugin.alora import BACKENDS
from zotune.engine.sglang.plugin.cpu import _WithoutPinning
from zotune.engine.sglang.plugin.segments import InvokedId, _segmented

SLOTS = {None: 0, "ordinary": 1, "a": 2, "b": 3}
RANK, RANKS, SCALINGS = 4, [0, 4, 4, 4], [0.0, 1.0, 2.0, 0.5]
WIDTH = 32
IDS = [
    "ordinary",
    InvokedId("a", 5),
    None,
    InvokedId("a", 30),
    InvokedId("b", 3),
    InvokedId("b", 0),
    InvokedId("a", 12),
]
PREFIX_LENS = [0, 0, 3, 10, 7, 0, 4]
LENS = [9, 11, 6, 25, 8, 4, 8]


def main() -> None:
    torch.manual_seed(0)
    total = sum(LENS)
    batch = SimpleNamespace(
        forward_mode=ForwardMode.EXTEND, lora_ids=IDS, batch_size=len(IDS), extend_prefix_lens_cpu=PREFIX_LENS,
        extend_seq_lens_cpu=LENS, extend_seq_lens=torch.tensor(LENS, dtype=torch.int32), extend_num_tokens=total,
        return_logprob=False, extend_logprob_start_lens_cpu=LENS,
    )  # fmt: skip
    view = _segmented(batch)
    a, b = torch.randn(len(SLOTS), 3 * RANK, WIDTH), torch.randn(len(SLOTS), 3 * WIDTH, RANK)  # q, k and v stacked
    x = torch.randn(total, WIDTH)
    expected = by_token(a, b, x)
    # What these two read of a running server: an option, and the name of a GPU to look up tuned tiles for.
    options: Any = chunked_backend
    tiles: Any = lora_tuning_config
    options.get_lora = lambda: SimpleNamespace(max_lora_chunk_size=16)
    tiles.get_device_name = lambda: "none"
    offsets = torch.tensor([0, WIDTH, 2 * WIDTH, 3 * WIDTH], dtype=torch.int32)
    differences = {}
    for name in BACKENDS:
        with _WithoutPinning():
            backend: Any = get_backend_from_name(name)(
                max_loras_per_batch=len(SLOTS), device=torch.device("cpu"), server_args=None
            )
            backend.prepare_lora_batch(view, [SLOTS[lora_id] for lora_id in view.lora_ids], RANKS, SCALINGS, False)
            product = backend.run_qkv_lora(
                x, a, b, output_offset=offsets, output_offset_cpu=offsets, max_qkv_out_dim=WIDTH,
                base_output=torch.zeros(total, 3 * WIDTH),
            )  # fmt: skip
        differences[name] = float((product - expected).abs().max())
    print(json.dumps({"differences": differences, "largest": float(expected.abs().max())}))


def by_token(a: torch.Tensor, b: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    result = torch.zeros(len(x), 3 * WIDTH)
    row = 0
    for lora_id, prefix_len, length in zip(IDS, PREFIX_LENS, LENS, strict=True):
        for position in range(prefix_len, prefix_len + length):
            if lora_id is not None and position >= getattr(lora_id, "start", 0):
                slot = SLOTS[lora_id]
                low = (a[slot] @ x[row]).view(3, RANK, 1)
                result[row] = SCALINGS[slot] * (b[slot].view(3, WIDTH, RANK) @ low).flatten()
            row += 1
    return result


if __name__ == "__main__":
    main()
