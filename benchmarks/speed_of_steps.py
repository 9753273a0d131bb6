"""Figures of speed.py: training steps, scoring and evaluation, beside the baseline's or beside plain scoring."""

import json

from speed_bench import Bench, Step

from zotune.adapter.forms import initial_theta
from zotune.engine.torch.fast import TorchEngine
from zotune.run.trainer import evaluate
from zotune.zo.objectives import cross_entropy
from zotune.zo.protocol import AT_THETA, Example


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
