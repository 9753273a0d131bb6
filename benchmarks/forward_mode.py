"""Forward-mode derivatives against two-sided differences: time of a step's scores, and error of the slopes.

Time: K tangents against 2 K probes of SPSA on the same engine, in turn (A B A B ...), prompts warm; the ratio is that
of the medians, beside it the smallest and largest of neighbouring runs. Error: slopes of a model whose weights are in
bfloat16, against forward-mode slopes in float32 of the same weights; root of the mean square over directions, over
the root of the slopes' own mean square. A JSON line each, and a table at the end.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch
from opt_models import SHAPES, VOCABULARY, make_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from zotune.adapter.forms import initial_theta
from zotune.adapter.spec import LoraSpec
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.zo.draws import permutation
from zotune.zo.estimators import Estimator, Jvp, Spsa
from zotune.zo.objectives import cross_entropy
from zotune.zo.protocol import Example, Probe, Theta

INVOCATION = tuple(range(1000, 1008))
EPSILONS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def load(options: argparse.Namespace, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(options.model) if options.model else make_model(options.shape)
    return model.to(torch.bfloat16).to(dtype) if dtype != torch.float32 or options.figure == "error" else model


def make_engine(model: PreTrainedModel, scope: str) -> TorchEngine:
    spec = LoraSpec(8, 16.0, ("q_proj", "v_proj"), INVOCATION if scope == "activated" else None)
    return TorchEngine(model, spec, PrefixCache(64e9))


def make_batch(options: argparse.Namespace) -> list[Example]:
    vocabulary = min(VOCABULARY, load(options).config.vocab_size)
    prompts = (permutation(i, "prompt", vocabulary)[: options.prompt_tokens] for i in range(options.batch_size))
    return [Example(tuple(map(int, prompt)), INVOCATION, ((11,), (12,)), i % 2) for i, prompt in enumerate(prompts)]


def slopes(estimator: Estimator, engine: TorchEngine, theta: Theta, batch: list[Example], count: int) -> np.ndarray:
    probes = estimator.ask(range(count))
    scores = engine.score(theta, probes, batch)
    of_scores = cross_entropy.losses if scores.tangents is None else cross_entropy.derivatives
    losses = of_scores(scores, batch)
    return np.array([slope.value for slope in estimator.tell(probes, losses)])


def some_theta(engine: TorchEngine) -> Theta:
    """B is zero at the start, where half of the derivatives are."""
    return Probe(999, 0.02).of(initial_theta(engine.tensor_shapes, 0))


def compare_times(options: argparse.Namespace, scope: str) -> dict[str, object]:
    engine, batch = make_engine(load(options), scope), make_batch(options)
    theta, sides = some_theta(engine), {"jvp": Jvp(), "spsa": Spsa(1e-3)}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(options.rounds + 1):
        for name, estimator in sides.items():
            start = time.perf_counter()
            slopes(estimator, engine, theta, batch, options.directions)
            if turn:  # the first fills the cache
                times[name].append(time.perf_counter() - start)
    ratios = [spsa / jvp for spsa, jvp in zip(times["spsa"], times["jvp"], strict=True)]
    jvp_s, spsa_s = (statistics.median(times[name]) for name in ("jvp", "spsa"))
    return {
        "figure": f"{scope}: time of {2 * options.directions} probes over {options.directions} tangents",
        "ratio": spsa_s / jvp_s, "ratio_min": min(ratios), "ratio_max": max(ratios), "jvp_s": jvp_s, "spsa_s": spsa_s,
    }  # fmt: skip


def compare_errors(options: argparse.Namespace, scope: str) -> dict[str, object]:
    full, half = (make_engine(load(options, dtype), scope) for dtype in (torch.float32, torch.bfloat16))
    batch = make_batch(options)
    theta = some_theta(full)
    exact = slopes(Jvp(), full, theta, batch, options.directions)

    def error(estimator: Estimator) -> float:
        found = slopes(estimator, half, theta, batch, options.directions)
        return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))

    errors = {f"spsa {epsilon:g}": error(Spsa(epsilon)) for epsilon in EPSILONS}
    return {"figure": f"{scope}: relative error of slopes in bfloat16", "jvp": error(Jvp()), **errors}


FIGURES = {"time": compare_times, "error": compare_errors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", choices=FIGURES, default="time")
    parser.add_argument("--model", help="a model folder; default: random weights of --shape")
    parser.add_argument("--shape", choices=SHAPES, default="opt-125m")
    parser.add_argument("--directions", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--scopes", nargs="+", default=["activated", "everywhere"])
    options = parser.parse_args()
    torch.set_num_threads(options.num_threads)
    results = []
    for scope in options.scopes:
        results.append(FIGURES[options.figure](options, scope))
        print(json.dumps(results[-1]), flush=True)
    names = list(results[0])
    print("\n| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for result in results:
        cells = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in result.values())
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
