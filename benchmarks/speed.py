"""Speed and memory against the baseline and against plain inference: the figures of docs/performance.md.

Model shape, batch and lengths are flags. Both sides of a figure are measured in turn in this process (A B A B ...);
a ratio is that of the medians, with the smallest and largest ratio of neighbouring runs beside it. Each figure prints
a JSON line when it is done, and a table stands at the end.
"""

import argparse
import gzip
import json
import multiprocessing
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from baseline_mezo import BaselineMezo
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig, PreTrainedModel

from zotune.adapter.forms import initial_theta
from zotune.adapter.spec import LoraSpec
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.run.trainer import evaluate
from zotune.study.first_order import LOSSES
from zotune.zo.estimators import Spsa
from zotune.zo.noise import AHEAD, GAUSSIAN, permutation
from zotune.zo.objectives import cross_entropy
from zotune.zo.optimizers import Sgd
from zotune.zo.protocol import AT_THETA, Example, TokenIds
from zotune.zo.updates import Slopes

SHAPES = {"tiny": (128, 2, 4), "opt-125m": (768, 12, 12), "opt-1.3b": (2048, 24, 32)}  # width, layers, heads
VOCABULARY = 50272
LABELS: tuple[TokenIds, ...] = ((7818,), (1049,))
Work = Callable[[], object]


def make_model(shape: str) -> PreTrainedModel:
    """An OPT of that shape with random weights, in fp32."""
    torch.manual_seed(0)
    width, layers, heads = SHAPES[shape]
    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=width, word_embed_proj_dim=width, ffn_dim=4 * width,
        num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=2048,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


class Bench:
    """Prompts of real text, and both sides made from the flags."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
        self.invocation = tuple(range(1000, 1000 + options.suffix_tokens))
        self.results: list[dict[str, Any]] = []

    def examples(self, count: int, max_tokens: int | None = None, before: TokenIds = ()) -> list[Example]:
        """Examples with two labels of one token; `before` stands in front of every prompt."""
        cut = max_tokens or self.options.prompt_tokens
        with gzip.open(self.options.data, "rt", encoding="utf-8") as lines:
            texts = [json.loads(line)["text"] for line, _ in zip(lines, range(count), strict=False)]
        prompts = [tuple(self.tokenizer(text, verbose=False).input_ids[:cut]) for text in texts]
        return [Example(before + p, self.invocation, LABELS, i % 2) for i, p in enumerate(prompts)]

    def engine(self, scope: str, budget_bytes: float = 64e9) -> TorchEngine:
        spec = LoraSpec(8, 16.0, ("q_proj", "v_proj"), self.invocation if scope == "activated" else None)
        return TorchEngine(make_model(self.options.shape), spec, PrefixCache(budget_bytes))

    def baseline(self) -> BaselineMezo:
        return BaselineMezo(make_model(self.options.shape), 8, 16, ("q_proj", "v_proj"))

    def compare(self, figure: str, ours: Work, other: Work, repeats: int = 1, warm: bool = True) -> None:
        """Time `other` once and `ours` `repeats` times in each round; the ratio is other's time over ours."""
        if warm:
            ours()
        times: dict[str, list[float]] = {"ours": [], "other": []}
        for _ in range(self.options.rounds):
            for side, work, count in (("other", other, 1), ("ours", ours, repeats)):
                start = time.perf_counter()
                for _ in range(count):
                    work()
                times[side].append((time.perf_counter() - start) / count)
        ratios = [b / a for a, b in zip(times["ours"], times["other"], strict=True)]
        medians = {side: statistics.median(values) for side, values in times.items()}
        self.record(figure, medians["other"] / medians["ours"], min(ratios), max(ratios), **medians)

    def record(self, figure: str, ratio: float, low: float, high: float, **more: float) -> None:
        self.results.append({"figure": figure, "ratio": ratio, "ratio_min": low, "ratio_max": high, **more})
        print(json.dumps(self.results[-1]), flush=True)


class Step:
    """A training step of zotune on one engine."""

    def __init__(self, engine: TorchEngine, directions: int) -> None:
        self.engine = engine
        self.directions = directions
        self.theta: Any = initial_theta(engine.tensor_shapes, 0)
        self.count = 0

    def __call__(self, batch: Sequence[Example]) -> None:
        estimator = Spsa(1e-2)
        self.count += 1
        probes = estimator.ask(self._seeds(self.count))
        AHEAD.start(GAUSSIAN, self._seeds(self.count + 1), self.theta)
        losses = cross_entropy.losses(self.engine.score(self.theta, probes, batch), batch)
        self.theta, _ = Sgd().update(self.theta, {}, Slopes(tuple(estimator.tell(probes, losses))), 1e-4)

    def _seeds(self, step: int) -> list[int]:
        return [step * 1000 + k for k in range(self.directions)]


def training(bench: Bench, figure: str, scope: str, directions: int, batch: list[Example], repeats: int) -> None:
    step, baseline, seeds = Step(bench.engine(scope), directions), bench.baseline(), iter(range(10**6))
    bench.compare(figure, lambda: step(batch), lambda: baseline.step(batch, next(seeds), 1e-2, 1e-4), repeats)


def activated_1(bench: Bench) -> None:
    batch = bench.examples(bench.options.batch_size)
    training(bench, "activated, 1 direction, warm: steps/s over the baseline's", "activated", 1, batch, repeats=10)


def activated_16(bench: Bench) -> None:
    batch = bench.examples(bench.options.batch_size)
    training(bench, "activated, 16 directions, warm: steps/s over the baseline's", "activated", 16, batch, repeats=2)


def everywhere_1(bench: Bench) -> None:
    batch = bench.examples(bench.options.batch_size)
    training(bench, "everywhere, 1 direction: steps/s over the baseline's", "everywhere", 1, batch, repeats=1)


def everywhere_shared(bench: Bench) -> None:
    whole = [token for example in bench.examples(8, 2048) for token in example.prompt]
    batch = bench.examples(bench.options.batch_size, 40, before=tuple(whole[:512]))
    figure = "everywhere, 512 shared tokens + 40: steps/s over the baseline's"
    training(bench, figure, "everywhere", 1, batch, repeats=1)


def scoring(bench: Bench) -> None:
    """A step's tokens/s over those of scoring the same requests with one adapter that stays."""
    for scope in ("activated", "everywhere"):
        engine, batch = bench.engine(scope), bench.examples(bench.options.batch_size)
        step = Step(engine, 1)

        def score(engine: TorchEngine = engine, step: Step = step, batch: list[Example] = batch) -> None:
            engine.score(step.theta, [AT_THETA, AT_THETA], batch)

        score()
        bench.compare(f"{scope}: tokens/s of a step over tokens/s of scoring", lambda s=step, b=batch: s(b), score, 1)


def evaluation(bench: Bench) -> None:
    """Evaluating cached examples over the baseline's, one row at a time; the baseline on a share of them."""
    examples = bench.examples(bench.options.eval_examples)
    engine, baseline = bench.engine("activated"), bench.baseline()
    theta = initial_theta(engine.tensor_shapes, 0)
    few = examples[::25]

    def theirs() -> None:
        for example in few:
            baseline.predict(example)

    def ours() -> None:
        evaluate(engine, theta, cross_entropy, examples)

    ours()
    bench.compare("evaluation, cached (baseline on every 25th example)", ours, theirs)
    last = bench.results[-1]
    for key in ("ratio", "ratio_min", "ratio_max", "other"):
        last[key] *= len(examples) / len(few)
    last["figure"] = f"evaluation of {len(examples)} cached examples over the baseline's, row by row"
    print(json.dumps(last), flush=True)


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
    matrices = {name: torch.from_numpy(value.copy()).requires_grad_() for name, value in step.theta.items()}
    adam = torch.optim.Adam(matrices.values())
    for _ in range(4):
        if work == "training":
            step(batch)
        elif work == "inference":
            engine.score(step.theta, [AT_THETA], batch)
        else:
            adam.zero_grad()
            engine.plain.backward(matrices, batch, lambda log_probs: LOSSES[cross_entropy](log_probs, batch))
            adam.step()
    return engine.peak_memory_bytes()


FIGURES: dict[str, Callable[[Bench], None]] = {
    "activated-1": activated_1,
    "activated-16": activated_16,
    "everywhere-1": everywhere_1,
    "everywhere-shared": everywhere_shared,
    "scoring": scoring,
    "evaluation": evaluation,
    "cold": cold,
    "reuse": reuse,
    "budgets": budgets,
    "limit": limit,
    "arithmetic": arithmetic,
    "memory": memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figures", nargs="+", default=list(FIGURES), choices=FIGURES)
    parser.add_argument("--shape", default="opt-125m", choices=SHAPES)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=300, help="prompts are cut to at most this many tokens")
    parser.add_argument("--suffix-tokens", type=int, default=8)
    parser.add_argument("--eval-examples", type=int, default=250, help="20 MB of KV each at the default shape")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/imdb/train.jsonl.gz"))
    parser.add_argument("--tokenizer", type=Path, default=Path("../shared/tokenizers/gpt2"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("benchmarks/results.jsonl"),
        help="figures so far; new ones replace theirs",
    )
    parser.add_argument("--write", type=Path, help="a page to put the table into, such as docs/performance.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench(options)
    for name in options.figures:
        FIGURES[name](bench)
    machine = f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}, {date.today()}"
    fresh = {result["figure"]: {**result, "machine": machine} for result in bench.results}
    known: dict[str, dict[str, Any]] = {}
    if options.results.is_file():
        known = {r["figure"]: r for r in map(json.loads, options.results.read_text(encoding="utf-8").splitlines())}
    known.update(fresh)
    options.results.write_text("".join(json.dumps(r) + "\n" for r in known.values()), encoding="utf-8")
    table = ["| figure | ratio | range | ours | other |", "|---|---|---|---|---|"]
    for r in known.values():
        low, high = r["ratio_min"], r["ratio_max"]
        table.append(
            f"| {r['figure']} | {r['ratio']:.2f} | {low:.2f} - {high:.2f} | {r['ours']:.3f} | {r['other']:.3f} |"
        )
    table += ["", *sorted({r["machine"] for r in known.values()})]
    print("\n".join(["", *table]))
    if options.write:
        marked = re.compile(r"(<!-- speed -->\n).*?(<!-- /speed -->)", re.DOTALL)
        text = options.write.read_text(encoding="utf-8")
        options.write.write_text(marked.sub(lambda m: m[1] + "\n".join(table) + "\n" + m[2], text), encoding="utf-8")


if __name__ == "__main__":
    main()
