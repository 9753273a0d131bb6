"""Train the built-in demo over learning rates and seeds: a table of held-out accuracy before and after.

The p-value is McNemar's exact test over the held-out reviews (those that only one of the two got right). With no
arguments it shows that the demo's rise is no chance.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from zotune import evaluate, mezo_finetune
from zotune.adapter.spec import LoraSpec
from zotune.data.demo import demo_path
from zotune.data.records import load_records
from zotune.data.tasks import TASKS
from zotune.data.templates import Encoder
from zotune.data.texts import to_texts
from zotune.engine.torch.loading import load_model, load_tokenizer
from zotune.engine.torch.plain import PlainEngine
from zotune.run.trainer import Evaluation
from zotune.zo.protocol import AT_THETA


def mcnemar(before: Evaluation, after: Evaluation, labels: list[int]) -> float:
    """Two-sided exact p-value that before and after are equally often right."""
    assert before.predictions
    assert after.predictions
    right = [
        (old == label, new == label)
        for old, new, label in zip(before.predictions, after.predictions, labels, strict=True)
    ]
    gained, lost = right.count((False, True)), right.count((True, False))
    tail = sum(math.comb(gained + lost, k) for k in range(min(gained, lost) + 1)) / 2 ** (gained + lost)
    return min(1.0, 2 * tail)


def threshold_alone() -> float:
    """Held-out accuracy of the untrained model with only its decision threshold moved, to the best on training data."""
    task, folder = TASKS["demo"], demo_path("model")
    encoder = Encoder(load_tokenizer(folder), task, max_length=512, activated=True)
    engine = PlainEngine(load_model(folder, "float32", "cpu"), LoraSpec(1, 1.0, target_modules=()))
    margins, labels = [], []
    for name in ("train.jsonl", "eval.jsonl"):
        examples = encoder.encode(to_texts(load_records(demo_path(name), name), task, {})).examples
        scores = engine.score({}, [AT_THETA], examples).log_probs[0]
        margins.append(scores[:, 1] - scores[:, 0])
        labels.append(np.array([example.label for example in examples]))
    best = max(margins[0], key=lambda threshold: np.mean((margins[0] >= threshold) == labels[0]))
    return float(np.mean((margins[1] >= best) == labels[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[None], help="default: the default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num-steps", type=int, default=600)
    parser.add_argument("--mezo", action="store_true", help="MeZO: one direction, two-sided, SGD, a constant rate")
    parser.add_argument("--num-threads", type=int, default=2)
    arguments = parser.parse_args()
    mezo = {
        "estimator": "spsa", "optimizer": "sgd", "directions": 1, "tuning": "lora", "init_lora_weights": "kaiming",
        "lr_scheduler_type": "constant",
    }  # fmt: skip
    method: dict[str, Any] = mezo if arguments.mezo else {}

    labels = [json.loads(line)["label"] for line in Path(demo_path("eval.jsonl")).read_text().splitlines()]
    print(f"threshold alone: {threshold_alone():.1%}\n")
    before = evaluate(task="demo", num_threads=arguments.num_threads)
    print("| method | learning rate | seed | before | after | gain, points | p (McNemar) | training, s |")
    print("|---|---|---|---|---|---|---|---|")
    for learning_rate in arguments.learning_rates:
        for seed in arguments.seeds:
            with tempfile.TemporaryDirectory() as folder:
                result = mezo_finetune(
                    learning_rate=learning_rate, seed=seed, num_steps=arguments.num_steps, eval_steps=10**9,
                    num_threads=arguments.num_threads, output_dir=folder, **method,
                )  # fmt: skip
                after = evaluate(adapter=result.adapter, task="demo", num_threads=arguments.num_threads)
            assert before.accuracy is not None
            assert after.accuracy is not None
            print(
                f"| {'MeZO' if method else 'default'} | {learning_rate or 'default'} | {seed} "
                f"| {before.accuracy:.1%} | {after.accuracy:.1%} "
                f"| {100 * (after.accuracy - before.accuracy):+.1f} | {mcnemar(before, after, labels):.1e} "
                f"| {result.summary['train_time_s']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
