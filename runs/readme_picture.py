"""The picture and the figures of README.md, from what the study of SmolLM2 kept; nothing is trained.

    python runs/readme_picture.py [--page README.md] [--picture docs/images/accuracy.png]

The picture shows held-out accuracy over the seconds of training: every point is an evaluation in docs/smollm2.jsonl.
The table has the accuracy on test examples, and the peak of memory, of all seeds of the same methods.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from page import put

TASK = "sst2"
ROOT = Path(__file__).parents[1]
TICKS = {10: "10 s", 20: "20 s", 30: "30 s", 60: "1 min", 120: "2 min", 300: "5 min"}


class Line(NamedTuple):
    """A method in the picture, as the study calls it, and what a newcomer reads."""

    method: str
    name: str
    color: str


LINES = (
    Line("MeZO as published", "MeZO as published: two-sided probes of one direction", "#B04A00"),
    Line("16 one-sided probes", "zotune's probes: 16 directions a step", "#56B4E9"),
    Line("lens, 60 seconds", "zotune's default in a minute: its rate falls sooner", "#009E73"),
    Line("lens", "zotune's default: the lens", "#0072B2"),
    Line("backpropagation of whole sequences", "backpropagation, for comparison", "#666666"),
)


def cells(path: Path, line: Line) -> list[dict[str, Any]]:
    """The finished cells of a method, a seed each."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [r for r in rows if (r["part"], r["method"], r["task"]) == ("study", line.method, TASK)]


def draw(results: Path, picture: Path) -> None:
    """A thin line for each seed, and a thick one for the mean. The ground is opaque: a dark page shows it as well."""
    figure, axes = plt.subplots(figsize=(8, 4.4), constrained_layout=True, facecolor="white")
    for line in LINES:
        runs = [cell for cell in cells(results, line) if "evaluated_at_seconds" in cell]
        for run in runs:
            axes.plot(*_points([run]), color=line.color, linewidth=0.7, alpha=0.35)
        axes.plot(*_points(runs), color=line.color, linewidth=2.2, marker=".", label=line.name)
    untrained = 100 * _untrained(results)
    axes.axhline(untrained, color="black", linewidth=1, linestyle=":")
    axes.annotate("before training", (10.5, untrained), (0, 4), textcoords="offset points", fontsize=9)
    axes.set_xscale("log")
    axes.set_xlim(10, 330)
    axes.set_xticks(list(TICKS), list(TICKS.values()))
    axes.minorticks_off()
    axes.set_xlabel("training time on one CPU core")
    axes.set_ylabel("accuracy on 300 held-out sentences, %")
    axes.set_title("SST-2, SmolLM2 with 135 million parameters (a point is an evaluation)", fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.1), frameon=False, fontsize=9, reverse=True)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=140)
    plt.close(figure)


def _points(runs: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Mean seconds and mean accuracy of each evaluation that all have, but for the one before training."""
    seconds = zip(*(run["evaluated_at_seconds"][1:] for run in runs), strict=False)
    accuracies = zip(*([accuracy for _, accuracy, _ in run["evaluations"][1:]] for run in runs), strict=False)
    return list(map(statistics.mean, seconds)), [100 * statistics.mean(values) for values in accuracies]


def _untrained(results: Path) -> float:
    """Held-out accuracy of the model as it was: the same for all."""
    (accuracy,) = {cell["evaluations"][0][1] for line in LINES for cell in cells(results, line)}
    return float(accuracy)


def table(results: Path) -> str:
    """Means over seeds, of time and memory over those that had a clock, with the standard deviation of the accuracy."""
    lines = ["| | seeds | steps | training time | test accuracy | peak memory |", "|---|---|---|---|---|---|"]
    for line in LINES:
        runs = cells(results, line)
        accuracies = [100 * run["test"]["accuracy"] for run in runs]
        spread = f" ± {statistics.stdev(accuracies):.1f}" if len(runs) > 1 else ""
        name = line.name.partition(":")[0].removesuffix(", for comparison")
        mean = {
            key: statistics.mean(run[key] for run in runs if run.get(key))
            for key in ("steps", "seconds", "peak_memory_bytes")
        }
        lines.append(
            f"| {name} | {len(runs)} | {mean['steps']:,.0f} | {mean['seconds'] / 60:.1f} min "
            f"| {statistics.mean(accuracies):.1f}{spread} % | {mean['peak_memory_bytes'] / 2**30:.1f} GiB |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--page", type=Path, default=ROOT / "README.md")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "accuracy.png")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "smollm2.jsonl")
    options = parser.parse_args()
    draw(options.results, options.picture)
    put(options.page, "result", table(options.results))
    print(options.picture, options.page, sep="\n")


if __name__ == "__main__":
    main()
