"""Steps per second and peak memory on a GPU: python benchmarks/gpu.py --shape opt-1.3b --dtype bfloat16

Random weights and random prompts of IMDB's lengths, scopes activated (warm cache) and everywhere, beside the rate of
scoring the same requests at theta. With --device cpu it runs on a CPU, which shows that it works, not how fast.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch
from opt_models import SHAPES, VOCABULARY, make_model
from speed_bench import LABELS, Step

from zotune.adapter.spec import LoraSpec
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.loading import DTYPES
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.zo.protocol import AT_THETA, Example


def timed(work, device: torch.device, repeats: int) -> float:  # type: ignore[no-untyped-def]
    """Median seconds of a call, the device's work included."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="opt-125m", choices=SHAPES)
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--directions", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    rng = np.random.default_rng(0)
    invocation = tuple(range(1000, 1008))
    batch = [
        Example(tuple(rng.integers(10, VOCABULARY, size=rng.integers(77, 399)).tolist()), invocation, LABELS, i % 2)
        for i in range(options.batch_size)
    ]
    model = make_model(options.shape).to(device=device, dtype=DTYPES[options.dtype])
    for scope in ("activated", "everywhere"):
        spec = LoraSpec(8, 16.0, ("q_proj", "v_proj"), invocation if scope == "activated" else None)
        engine = TorchEngine(model, spec, PrefixCache(20e9), max_tokens_per_forward=16384)
        step = Step(engine, options.directions)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        step(batch)
        step_s = timed(lambda s=step: s(batch), device, options.repeats)
        probes = [AT_THETA] * (2 * options.directions)
        score_s = timed(lambda e=engine, s=step, p=probes: e.score(s.theta, p, batch), device, options.repeats)
        result = {
            "device": name, "shape": options.shape, "dtype": options.dtype, "scope": scope,
            "directions": options.directions, "steps_per_s": 1 / step_s, "share_of_scoring": score_s / step_s,
            "peak_memory_bytes": engine.peak_memory_bytes(),
        }  # fmt: skip
        print(json.dumps(result), flush=True)
        engine.close()


if __name__ == "__main__":
    main()
