"""Memory and time of a full-parameter training step against inference on the same model, each in a fresh process.

Peak memory is the process's largest resident set (VmHWM), with the model loaded from a file, as every run loads it.
Inference scores the batch under theta; training takes MeZO steps on it. A JSON line each, and a table at the end.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from opt_models import SHAPES, make_model

from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.loading import load_model
from zotune.zo.draws import permutation
from zotune.zo.estimators import Spsa
from zotune.zo.objectives import cross_entropy
from zotune.zo.optimizers import InPlace, Sgd
from zotune.zo.protocol import AT_THETA, Example
from zotune.zo.updates import Slopes


def measure(options: argparse.Namespace) -> None:
    """The child: works `steps` times, then prints its peak memory and the time of a step."""
    torch.set_num_threads(options.num_threads)
    engine = TorchEngine(load_model(options.model, options.dtype, "cpu"), None)
    prompts = (
        permutation(i, "prompt", engine.model.config.vocab_size)[: options.prompt_tokens]
        for i in range(options.batch_size)
    )
    batch = [Example(tuple(map(int, prompt)), (10, 11), ((12,), (13,)), i % 2) for i, prompt in enumerate(prompts)]
    optimizer, estimator, theta = InPlace(Sgd()), Spsa(1e-3), engine.weights
    assert theta is not None
    start = time.perf_counter()
    for step in range(options.steps):
        if options.work == "inference":
            engine.score(theta, [AT_THETA], batch)
            continue
        probes = estimator.ask([step])
        slopes = estimator.tell(probes, cross_entropy.losses(engine.score(theta, probes, batch), batch))
        optimizer.update(theta, {}, Slopes(tuple(slopes)), 1e-6)
    seconds = (time.perf_counter() - start) / options.steps
    print(json.dumps({"work": options.work, "dtype": options.dtype, "peak_mib": engine.peak_memory_bytes() / 2**20,
                      "step_s": seconds}))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model folder; default: random weights of --shape")
    parser.add_argument("--shape", choices=SHAPES, default="opt-125m")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=60)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--work", choices=("inference", "training"), help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        measure(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or folder
        results = []
        for dtype in options.dtypes:
            if not options.model:
                make_model(options.shape).to(getattr(torch, dtype)).save_pretrained(folder)
            numbers = (
                part
                for name in ("batch_size", "prompt_tokens", "steps", "num_threads")
                for part in (f"--{name.replace('_', '-')}", str(getattr(options, name)))
            )
            command = [sys.executable, str(Path(__file__)), "--model", model, "--dtype", dtype, *numbers]
            for work in ("inference", "training"):
                child = subprocess.run([*command, "--work", work], check=True, capture_output=True, text=True)
                results.append(json.loads(child.stdout.splitlines()[-1]))
                print(json.dumps(results[-1]), flush=True)
    print("\n| dtype | inference, MiB | training, MiB | ratio | inference, s | training step, s |\n" + "|---" * 6 + "|")
    for inference, training in zip(results[::2], results[1::2], strict=True):
        print(
            f"| {inference['dtype']} | {inference['peak_mib']:.0f} | {training['peak_mib']:.0f} "
            f"| {training['peak_mib'] / inference['peak_mib']:.3f} | {inference['step_s']:.2f} "
            f"| {training['step_s']:.2f} |"
        )


if __name__ == "__main__":
    main()
