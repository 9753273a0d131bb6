"""Figures of speed.py: what the cache of prompts costs at first, and what it brings from then on."""

import statistics
import time

import torch
from opt_models import make_model
from speed_bench import Bench, Step

from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.zo.draws import permutation


def cold(bench: Bench) -> None:
    """The first step on a cold cache, over one plain forward pass of the same prompts."""
    batch = bench.examples(bench.options.batch_size)
    engine = bench.engine("activated")
    step, model = Step(engine, 1), make_model(bench.options.shape)
    longest = max(len(example.prompt) for example in batch)
    ids = torch.tensor([[0] * (longest - len(e.prompt)) + list(e.prompt) for e in batch])
    mask = torch.tensor([[0] * (longest - len(e.prompt)) + [1] * len(e.prompt) for e in batch])

    def first() -> None:
        engine.cache = PrefixCache(64e9)
        step(batch)

    @torch.inference_mode()
    def forward() -> None:
        model(input_ids=ids, attention_mask=mask, logits_to_keep=1, use_cache=True)

    forward()
    bench.compare("cold first step: one plain forward of the prompts over it", first, forward)


def reuse(bench: Bench) -> None:
    """A 200-step run on 64 examples: the share of tokens served from cache, and the time a step takes cold and warm."""
    engine, examples = bench.engine("activated"), bench.examples(64)
    step, size, times = Step(engine, 1), bench.options.batch_size, []
    for index in range(200):
        first = index * size % 64
        start = time.perf_counter()
        step((examples + examples)[first : first + size])
        times.append(time.perf_counter() - start)
    stats = engine.stats
    share = stats.tokens_reused / (stats.tokens_reused + stats.tokens_computed)
    cold, warm = statistics.median(times[: 64 // size]), statistics.median(times[64 // size :])
    bench.record("share of tokens reused over 200 steps on 64 examples", share, share, share, ours=warm, other=cold)


def budgets(bench: Bench) -> None:
    """Time of a step and share of prompt tokens found, as 0 to 100 % of the data fit into the cache."""
    examples, size = bench.examples(32), bench.options.batch_size // 2
    everything = bench.engine("activated")
    Step(everything, 1)(examples)
    whole = everything.cache.num_bytes
    prompts = sum(len(example.prompt) for example in examples)
    for percent in (0, 25, 50, 75, 100):
        engine = bench.engine("activated", whole * percent / 100)
        step = Step(engine, 1)
        order = [int(i) for epoch in range(3) for i in permutation(epoch, "budget", 32)]
        batches = [[examples[i] for i in order[start : start + size]] for start in range(0, len(order), size)]
        for batch in batches[: 32 // size]:
            step(batch)
        before, times = engine.stats.tokens_computed, []
        for batch in batches[32 // size :]:
            start = time.perf_counter()
            step(batch)
            times.append(time.perf_counter() - start)
        suffixes = 2 * (len(order) - 32) * bench.options.suffix_tokens
        found = 1 - (engine.stats.tokens_computed - before - suffixes) / (2 * prompts)
        bench.record(
            f"budget of {percent} % of the data: share of prompt tokens found", found, found, found,
            ours=statistics.median(times), other=max(times),
        )  # fmt: skip
