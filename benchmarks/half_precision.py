"""How far slopes in bfloat16 are off on a real model, beside what they differ by from batch to batch.

    python benchmarks/half_precision.py                       # q_proj and v_proj
    python benchmarks/half_precision.py o_proj down_proj

SmolLM2-135M-Instruct (`--model smollm2`), SST-2, the default's start. For each epsilon: the error of one-sided and
two-sided slopes by rounding, with the residual stream in bfloat16 and in float32, and by the curvature of the loss
(float32 against exact derivatives); all over the standard deviation of a slope between examples, which a batch divides
by the same number as the errors. A minute or two on one core.
"""

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
import torch

from zotune.adapter.forms import initial_theta
from zotune.adapter.spec import LoraSpec
from zotune.assemble.model import model_path
from zotune.engine.torch.eva import principal_components
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.loading import load_model, load_tokenizer
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.zo.objectives import cross_entropy
from zotune.zo.protocol import AT_THETA, Example, Probe

DATA = Path(__file__).parents[1] / "../shared/data/sst2/train.jsonl.gz"
SIDES = ("one-sided", "two-sided")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", default=["q_proj", "v_proj"])
    parser.add_argument("--examples", type=int, default=24)
    parser.add_argument("--directions", type=int, default=6)
    parser.add_argument("--epsilons", type=float, nargs="+", default=[3e-3, 1e-2, 3e-2, 1e-1])
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(model_path("smollm2"))
    invocation = tuple(tokenizer(" It was").input_ids)
    labels = tuple(tuple(tokenizer(word).input_ids) for word in (" terrible", " great"))
    with gzip.open(options.data, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line, _ in zip(lines, range(64), strict=False)]
    examples = [Example(tuple(tokenizer(r["sentence"]).input_ids), invocation, labels, r["label"]) for r in records]
    batch = examples[: options.examples]
    spec = LoraSpec(8, 16.0, tuple(options.modules), invocation, peft_type="lora_fa")
    engine = TorchEngine(load_model(model_path("smollm2"), "bfloat16", "cpu"), spec, PrefixCache(4e9))
    engine.layers.start_from(principal_components(engine, examples, 0))  # type: ignore[attr-defined]
    theta = initial_theta(engine.tensor_shapes, 0, engine.spec)
    directions = range(options.directions)

    def slopes(epsilon: float) -> tuple[np.ndarray, np.ndarray]:
        probes = [AT_THETA, *(Probe(seed, sign * epsilon) for sign in (1, -1) for seed in directions)]
        losses = cross_entropy(engine, theta, probes, batch).values
        above, below = losses[1 : 1 + len(directions)], losses[1 + len(directions) :]
        return (above - losses[0]) / epsilon, (above - below) / (2 * epsilon)

    rounded = {}
    for stream in ("float32", "bfloat16"):
        engine.cache = PrefixCache(4e9)
        engine.passes.stream.possible = stream == "float32"
        rounded[stream] = {epsilon: slopes(epsilon) for epsilon in options.epsilons}
    inside = engine.in_float32()
    assert inside is not None
    with inside:
        exact = {epsilon: slopes(epsilon) for epsilon in options.epsilons}
        derivatives = cross_entropy(
            engine, theta, [Probe(seed, 0.0, derivative=True) for seed in directions], batch
        ).derivatives
    assert derivatives is not None
    spread = float(np.std(derivatives, axis=1).mean())
    print(f"LoRA on {', '.join(options.modules)}; a slope differs by {spread:.2f} between examples")
    print("| epsilon | slope | rounding, bfloat16 stream | rounding, float32 stream | curvature |")
    print("|---|---|---|---|---|")
    for epsilon in options.epsilons:
        for side, name in enumerate(SIDES):
            errors = [rounded[stream][epsilon][side] - exact[epsilon][side] for stream in ("bfloat16", "float32")]
            errors.append(exact[epsilon][side] - derivatives)
            cells = " | ".join(f"{np.sqrt(np.mean(error**2)) / spread:.3f}" for error in errors)
            print(f"| {epsilon:g} | {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
