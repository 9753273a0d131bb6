"""Figures of speed.py: what the hardware would allow, as operations, matrix products alone, and memory."""

import argparse
import multiprocessing

import torch
from opt_models import SHAPES
from speed_bench import Bench, Step, Work
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from zotune.zo.objectives import cross_entropy
from zotune.zo.optimizers import Adam
from zotune.zo.protocol import AT_THETA
from zotune.zo.updates import Gradient


def limit(bench: Bench) -> None:
    """A step of 16 directions beside the matrix products alone that the base model needs for its tokens."""
    batch, step = bench.examples(bench.options.batch_size), Step(bench.engine("activated"), 16)
    width, layers, _ = SHAPES[bench.options.shape]
    num_tokens = 2 * 16 * len(batch) * bench.options.suffix_tokens
    inputs, wide = torch.randn(num_tokens, width), torch.randn(num_tokens, 4 * width)
    square, up = torch.randn(width, width), torch.randn(4 * width, width)

    @torch.inference_mode()
    def products() -> None:
        for _ in range(layers):
            for _ in range(4):
                inputs @ square
            inputs @ up.T
            wide @ up

    step(batch)
    bench.compare(
        "matrix products of the base model alone, over a step of 16 directions", lambda: step(batch), products
    )


def arithmetic(bench: Bench) -> None:
    """Floating-point operations of the baseline's step over ours: the ratio if both ran at the same rate."""
    batch, baseline = bench.examples(bench.options.batch_size), bench.baseline()
    theirs = _operations(lambda: baseline.step(batch, 0, 1e-2, 1e-4))
    for directions in (1, 16):
        step = Step(bench.engine("activated"), directions)
        step(batch)
        ours = _operations(lambda step=step: step(batch))
        bench.record(
            f"activated, {directions} direction{'s'[: directions > 1]}: operations of a step, in 10^12",
            theirs / ours, theirs / ours, theirs / ours, ours=ours / 1e12, other=theirs / 1e12,
        )  # fmt: skip


def _operations(work: Work) -> int:
    """As torch counts them in matrix products, attention's too: without its fused kernels, which it does not count."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return int(counter.get_total_flops())


def memory(bench: Bench) -> None:
    """Peak memory of a process that trains over that of one that only scores with the same cache; the second row is
    backpropagation and Adam on the same adapter and batch, over the same."""
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for work in ("inference", "training", "backpropagation"):
        with context.Pool(1) as pool:
            peaks[work] = pool.apply(_peak_bytes, (bench.options, work))
    for work in ("training", "backpropagation"):
        ratio = peaks[work] / peaks["inference"]
        bench.record(
            f"peak memory of {work} over inference, MiB beside", ratio, ratio, ratio,
            ours=peaks[work] / 2**20, other=peaks["inference"] / 2**20,
        )  # fmt: skip


def _peak_bytes(options: argparse.Namespace, work: str) -> int:
    torch.set_num_threads(options.threads)
    bench = Bench(options)
    engine, batch = bench.engine("activated"), bench.examples(options.batch_size)
    step = Step(engine, 1)
    adam, theta = Adam(), dict(step.theta)
    state = adam.init(theta)
    for _ in range(4):
        if work == "training":
            step(batch)
        elif work == "inference":
            engine.score(step.theta, [AT_THETA], batch)
        else:
            _, gradient = cross_entropy.gradient(engine.plain.gradient, theta, batch)
            theta, state = adam.update(theta, state, Gradient(gradient), 1e-4)
    return engine.peak_memory_bytes()
