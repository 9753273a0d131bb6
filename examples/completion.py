"""Completions: the model learns to write dates as numbers, from pairs of a prompt and what shall follow it. Picture:
the loss of the completions' tokens, in training and on pairs that were held out.

    python examples/completion.py --num-steps 100
"""

import argparse
import json
import random
from datetime import date, timedelta
from pathlib import Path

import matplotlib.pyplot as plt

from zotune import mezo_finetune, predict

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="smollm2")
parser.add_argument("--num-pairs", type=int, default=300)
parser.add_argument("--num-steps", type=int, default=50)
parser.add_argument("--output-dir", type=Path, default=Path("output/completion"))
options = parser.parse_args()

draw = random.Random(0)
days = [date(1990, 1, 1) + timedelta(days=draw.randrange(14_000)) for _ in range(options.num_pairs)]
pairs = [{"prompt": f"{day:%d %B %Y} is", "completion": f" {day:%Y-%m-%d}"} for day in days]
held_out = pairs[: max(2, options.num_pairs // 10)]

result = mezo_finetune(
    options.model, pairs[len(held_out) :], held_out, num_steps=options.num_steps,
    eval_steps=max(1, options.num_steps // 5), output_dir=options.output_dir, overwrite=True,
)  # fmt: skip
print(f"loss on held-out pairs: {result.initial.loss:.3f} before, {result.final.loss:.3f} after")
shown = held_out[:5]
answers = predict([pair["prompt"] for pair in shown], adapter=result.adapter, max_new_tokens=12)
for pair, answer in zip(shown, answers, strict=True):
    print(f"{pair['prompt']}{answer.splitlines()[0] if answer else ''}   (right:{pair['completion']})")

events = [json.loads(line) for line in (result.run_folder / "metrics.jsonl").read_text().splitlines()]
for name, label in (("step", "training"), ("eval", "held out")):
    chosen = [event for event in events if event["event"] == name]
    plt.plot([event["step"] for event in chosen], [event["loss"] for event in chosen], label=label)
plt.xlabel("step")
plt.ylabel("loss a token")
plt.legend()
plt.savefig(result.run_folder / "example.png", dpi=120)
print(result.run_folder / "example.png")
