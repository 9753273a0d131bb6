"""Your own table: a text and a label in each row of a CSV file. The picture: held-out accuracy over the steps.

    python examples/own_csv.py --data reviews.csv --labels terrible great --invocation " It was"

Without --data, the reviews that come with zotune are written into a CSV file first.
"""

import argparse
import csv
import json
from importlib import resources
from pathlib import Path

import matplotlib.pyplot as plt

from zotune import mezo_finetune, predict

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="smollm2")
parser.add_argument("--data", type=Path, help="a CSV file with the columns text and label")
parser.add_argument("--labels", nargs="+", default=["terrible", "great"], help="the word of label 0, of label 1, ...")
parser.add_argument("--invocation", default=" It was", help="what stands between a text and its label word")
parser.add_argument("--num-steps", type=int, default=50)
parser.add_argument("--output-dir", type=Path, default=Path("output/own-csv"))
options = parser.parse_args()


def write_reviews(path: Path) -> Path:
    """200 reviews as rows of a CSV file."""
    lines = resources.files("zotune").joinpath("demo", "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:200]]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows({"text": row["text"], "label": row["label"]} for row in rows)
    return path


data = options.data or write_reviews(options.output_dir.with_suffix(".csv"))
result = mezo_finetune(
    options.model, data, labels=tuple(options.labels), invocation=options.invocation, num_steps=options.num_steps,
    eval_steps=max(1, options.num_steps // 5), output_dir=options.output_dir, overwrite=True,
)  # fmt: skip
print(f"held-out accuracy: {result.initial.accuracy:.0%} before, {result.final.accuracy:.0%} after")
for text in ("A warm and clever film.", "The plot makes no sense."):
    print(f"{text} -> {predict([text], adapter=result.adapter)[0]}")

events = [json.loads(line) for line in (result.run_folder / "metrics.jsonl").read_text().splitlines()]
evaluations = [event for event in events if event["event"] == "eval"]
plt.plot([event["step"] for event in evaluations], [event["accuracy"] for event in evaluations], "o-")
plt.xlabel("step")
plt.ylabel("held-out accuracy")
plt.title(f"{data.name} on {options.model}")
plt.savefig(result.run_folder / "example.png", dpi=120)
print(result.run_folder / "example.png")
