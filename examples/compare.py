"""Methods side by side on the same data: the lens, probes, MeZO's two-sided probes, and backpropagation. The picture:
held-out accuracy over the seconds of training, a line a seed.

    python examples/compare.py --num-steps 50 --seeds 0 1 2

For many tasks at equal budgets, with tables, there is `zotune compare`.
"""

import argparse
import json
from importlib import resources
from itertools import accumulate
from pathlib import Path

import matplotlib.pyplot as plt

from zotune import mezo_finetune

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="smollm2")
parser.add_argument("--methods", nargs="+", default=["lens", "one_sided", "spsa", "backprop"])
parser.add_argument("--seeds", nargs="+", type=int, default=[0])
parser.add_argument("--num-steps", type=int, default=30)
parser.add_argument("--num-records", type=int, default=200)
parser.add_argument("--output-dir", type=Path, default=Path("output/compare"))
options = parser.parse_args()

demo = resources.files("zotune").joinpath("demo")
training, held_out = (
    [json.loads(line) for line in (demo / name).read_text(encoding="utf-8").splitlines()[: options.num_records]]
    for name in ("train.jsonl", "eval.jsonl")
)
for color, method in enumerate(options.methods):
    for seed in options.seeds:
        result = mezo_finetune(
            options.model, training, held_out, task="demo", estimator=method, seed=seed, num_steps=options.num_steps,
            eval_steps=max(1, options.num_steps // 5), output_dir=options.output_dir / f"{method}-{seed}",
            overwrite=True,
        )  # fmt: skip
        events = [json.loads(line) for line in (result.run_folder / "metrics.jsonl").read_text().splitlines()]
        times = [0.0, *accumulate(event["step_time_s"] for event in events if event["event"] == "step")]
        evaluations = [event for event in events if event["event"] == "eval"]
        seconds = [times[event["step"]] for event in evaluations]
        label = method if seed == options.seeds[0] else None
        plt.plot(seconds, [event["accuracy"] for event in evaluations], "o-", color=f"C{color}", label=label)
        print(f"{method}, seed {seed}: {result.final.accuracy:.1%} after {seconds[-1]:.1f} s of training")
plt.xlabel("seconds of training")
plt.ylabel("held-out accuracy")
plt.legend()
plt.savefig(options.output_dir / "example.png", dpi=120)
print(options.output_dir / "example.png")
