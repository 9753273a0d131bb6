"""A reward instead of answers: the model writes, and a function of yours says what that is worth. Here: few words, and
a full stop at the end. The picture: the mean reward on held-out prompts, and of every step.

    python examples/reward.py --num-steps 60
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt

from zotune import mezo_finetune

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="smollm2")
parser.add_argument("--num-steps", type=int, default=30)
parser.add_argument("--directions", type=int, default=16)
parser.add_argument("--max-new-tokens", type=int, default=24)
parser.add_argument("--output-dir", type=Path, default=Path("output/reward"))
options = parser.parse_args()

THINGS = "a river, a bicycle, rain, bread, a library, the moon, a violin, a bridge, winter, a clock, tea, a lighthouse"
prompts = [{"prompt": f"In a few words, {thing} is"} for thing in THINGS.split(", ")]


def short_and_whole(completions: list[str], **columns: object) -> list[float]:
    """One for a text that ends with a full stop, less a tenth for each of its words."""
    return [text.rstrip().endswith(".") - 0.1 * len(text.split()) for text in completions]


result = mezo_finetune(
    options.model, prompts[3:], prompts[:3], reward_funcs=short_and_whole, num_steps=options.num_steps, batch_size=4,
    directions=options.directions, max_new_tokens=options.max_new_tokens, stop_strings=("\n",),
    eval_steps=max(1, options.num_steps // 5), output_dir=options.output_dir, overwrite=True,
)  # fmt: skip
samples = [json.loads(line) for line in (result.run_folder / "samples.jsonl").read_text().splitlines()]
for step in (0, samples[-1]["step"]):
    for sample in (sample for sample in samples if sample["step"] == step):
        print(f"after {step} steps, {sample['reward']:5.2f}: {sample['prompt']}{sample['completion']}")

events = [json.loads(line) for line in (result.run_folder / "metrics.jsonl").read_text().splitlines()]
for name, label, style in (("step", "training, sampled", "."), ("eval", "held out, greedy", "o-")):
    chosen = [event for event in events if event["event"] == name]
    plt.plot([event["step"] for event in chosen], [event["measured"]["reward"] for event in chosen], style, label=label)
plt.xlabel("step")
plt.ylabel("mean reward")
plt.legend()
plt.savefig(result.run_folder / "example.png", dpi=120)
print(result.run_folder / "example.png")
