"""The main job with and without reuse: the same journal, in how much less time.

Runs `zotune train` in processes of its own, in turn with the fast engine and with the plain one, which computes every
token; compares the slopes of all steps and the time of training. Arguments after `--` go to both commands.

    python benchmarks/main_job.py                      # the demo, 200 steps
    python benchmarks/main_job.py -- --task imdb --model ../shared/models/opt-imdb-4m --train-data ...
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from zotune.run.journal import read_journal


def train(engine: str, folder: Path, options: argparse.Namespace) -> tuple[np.ndarray, float]:
    """Slopes of every step, and seconds spent in steps."""
    command = [
        str(Path(sys.executable).parent / "zotune"), "train", "--engine", engine, "--output-dir", str(folder),
        "--num-steps", str(options.num_steps), *options.arguments,
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    _, entries = read_journal(folder / "journal.jsonl")
    events = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    seconds = sum(event["step_time_s"] for event in events if "step_time_s" in event)
    return np.array([[slope.value for slope in entry.slopes] for entry in entries]), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("arguments", nargs="*", help="for zotune train")
    options = parser.parse_args()
    ratios, seconds, differences, sizes = [], {"torch": [], "plain": []}, [], []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as name:
            slopes = {}
            for engine in ("torch", "plain"):
                slopes[engine], spent = train(engine, Path(name) / engine, options)
                seconds[engine].append(spent)
        ratios.append(seconds["plain"][-1] / seconds["torch"][-1])
        differences.append(float(np.abs(slopes["torch"] - slopes["plain"]).max()))
        sizes.append(float(np.abs(slopes["plain"]).mean()))
    row = {
        "steps": options.num_steps,
        "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
        "torch_s": statistics.median(seconds["torch"]), "plain_s": statistics.median(seconds["plain"]),
        "largest_difference_of_slopes": max(differences), "mean_slope": statistics.mean(sizes),
    }  # fmt: skip
    print(json.dumps(row))
    print("\n| " + " | ".join(row) + " |\n" + "|---" * len(row) + "|")
    print("| " + " | ".join(f"{value:.3g}" for value in row.values()) + " |")


if __name__ == "__main__":
    main()
