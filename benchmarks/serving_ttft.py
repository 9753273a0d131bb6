"""Time to first token, activated against ordinary LoRA, in SGLang: python benchmarks/serving_ttft.py

A long prompt is asked of several adapters in turn, as the steps of a pipeline ask one document of several adapters. An
ordinary LoRA computes the prompt anew for each adapter; an activated one finds the KV that the first request left.
Each round draws a new prompt, sends it to the base model, and then to every ordinary adapter and every activated one
in pairs; the order within a pair changes from round to round. Adapters have the same shape and random weights,
and sit in their slots before the clock starts. The clock runs from the request to the first streamed token.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from opt_models import SHAPES, make_model
from peft import LoraConfig, get_peft_model

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.sglang_server import Server, serve

INVOCATION = [7, 8]


def write_adapters(model: Path, folder: Path, count: int) -> dict[str, Path]:
    """`count` ordinary and `count` activated adapters on q and v, rank 8."""
    from transformers import AutoModelForCausalLM

    adapters = {}
    for kind, invocation in (("ordinary", None), ("activated", INVOCATION)):
        config = LoraConfig(
            r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM",
            alora_invocation_tokens=invocation,
        )  # fmt: skip
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
        for number in range(count):
            torch.manual_seed(number)
            with torch.no_grad():
                for name, parameter in adapted.named_parameters():
                    if "lora_" in name:
                        parameter.normal_(std=0.02)
            adapters[f"{kind}-{number}"] = folder / f"{kind}-{number}"
            adapted.save_pretrained(adapters[f"{kind}-{number}"])
    return adapters


def first_token_s(server: Server, prompt: list[int], adapter: str | None) -> tuple[float, int]:
    """Seconds to the first token, and how many of the prompt's tokens came from the cache."""
    begin = time.perf_counter()
    answers = server.stream(prompt, adapter, num_tokens=1)
    first = next(answers)
    seconds = time.perf_counter() - begin
    for _ in answers:
        pass
    return seconds, first["meta_info"]["cached_tokens"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="opt-125m")
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="append the JSON line to this file")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(options.shape).save_pretrained(folder / "model")
        adapters = write_adapters(folder / "model", folder, options.adapters)
        flags = ("--skip-tokenizer-init", "--max-total-tokens", str(options.prompt_tokens * 16))
        flags += ("--max-loras-per-batch", str(len(adapters) + 1))
        with serve(folder / "model", adapters, folder / "log", *flags) as server:
            for adapter in (None, *adapters):  # into their slots
                first_token_s(server, [9, 10, *INVOCATION], adapter)
            result = measure(server, options, rng)
    print(json.dumps(result))
    if options.write:
        with options.write.open("a") as file:
            file.write(json.dumps(result) + "\n")
    print_table(result)


def measure(server: Server, options: argparse.Namespace, rng: np.random.Generator) -> dict[str, object]:
    times: dict[str, list[float]] = {"base": [], "ordinary": [], "activated": []}
    cached: dict[str, set[int]] = {kind: set() for kind in times}
    for round_number in range(options.rounds):
        prompt = [*rng.integers(100, 8000, size=options.prompt_tokens - len(INVOCATION)).tolist(), *INVOCATION]
        requests: list[tuple[str, str | None]] = [("base", None)]
        for number in range(options.adapters):
            kinds = ["ordinary", "activated"] if (round_number + number) % 2 else ["activated", "ordinary"]
            requests += [(kind, f"{kind}-{number}") for kind in kinds]
        for kind, adapter in requests:
            seconds, num_cached = first_token_s(server, prompt, adapter)
            times[kind].append(seconds)
            cached[kind].add(num_cached)
    ratios = [slow / fast for slow, fast in zip(times["ordinary"], times["activated"], strict=True)]
    return {
        "figure": "serving: time to first token of an ordinary LoRA over an activated one's",
        "shape": options.shape,
        "prompt_tokens": options.prompt_tokens,
        "adapters": options.adapters,
        "rounds": options.rounds,
        "ratio": statistics.median(times["ordinary"]) / statistics.median(times["activated"]),
        "ratio_of_pairs": [min(ratios), max(ratios)],
        "median_s": {kind: statistics.median(values) for kind, values in times.items()},
        "range_s": {kind: [min(values), max(values)] for kind, values in times.items()},
        "cached_tokens": {kind: sorted(values) for kind, values in cached.items()},
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} threads, torch {torch.__version__}",
    }


def print_table(result: dict[str, object]) -> None:
    medians, ranges, cached = result["median_s"], result["range_s"], result["cached_tokens"]
    assert isinstance(medians, dict)
    assert isinstance(ranges, dict)
    assert isinstance(cached, dict)
    print("\n| request | tokens from the cache | time to first token, s | range |\n|---|---|---|---|")
    for kind in medians:
        low, high = ranges[kind]
        print(f"| {kind} | {', '.join(map(str, cached[kind]))} | {medians[kind]:.3f} | {low:.3f} - {high:.3f} |")
    print(f"\nordinary over activated: {result['ratio']:.1f}")


if __name__ == "__main__":
    main()
