"""The picture and the figures of README.md, from what the study and the benchmarks kept; nothing is trained.

    python runs/readme_picture.py [--page README.md] [--picture docs/images/accuracy.png]

The picture shows held-out accuracy over the seconds of training. Every point is an evaluation in docs/results.jsonl.
The table has the test accuracy of the same runs, and the sentence below it two rows of benchmarks/results.jsonl.
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
TICKS = {3: "3 s", 10: "10 s", 30: "30 s", 60: "1 min", 180: "3 min", 600: "10 min", 3600: "1 hour"}


class Line(NamedTuple):
    """A method in the picture: where its cells are kept, and what a newcomer reads."""

    part: str
    method: str
    name: str
    color: str


LINES = (
    Line("reference", "MeZO everywhere", "MeZO as published: one direction a step", "#B04A00"),
    Line("final", "EVA, one-sided 16, adam", "zotune's probes: 16 directions a step", "#56B4E9"),
    Line("final", "lens", "zotune's default: the lens", "#0072B2"),
    Line("final", "backpropagation", "backpropagation, for comparison", "#666666"),
)


def cells(path: Path, line: Line) -> list[dict[str, Any]]:
    """The finished cells of a method, a seed each."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [r for r in rows if (r["part"], r["method"], r.get("task")) == (line.part, line.method, TASK)]


def draw(results: Path, picture: Path) -> None:
    """A thin line for each seed and a thick one for their mean. The ground is opaque: a dark page shows it as well."""
    figure, axes = plt.subplots(figsize=(8, 4.4), constrained_layout=True, facecolor="white")
    for line in LINES:
        runs = [cell["evaluations"] for cell in cells(results, line)]
        for run in runs:
            axes.plot(*_points([run]), color=line.color, linewidth=0.7, alpha=0.35)
        axes.plot(*_points(runs), color=line.color, linewidth=2.2, label=line.name)
    untrained = 100 * _untrained(results)
    axes.axhline(untrained, color="black", linewidth=1, linestyle=":")
    axes.annotate("before training", (3.2, untrained), (0, 4), textcoords="offset points", fontsize=9)
    axes.set_xscale("log")
    axes.set_xlim(3, 5400)
    axes.set_ylim(56, 80)
    axes.set_xticks(list(TICKS), list(TICKS.values()))
    axes.minorticks_off()
    axes.set_xlabel("training time on one CPU core")
    axes.set_ylabel("accuracy on 500 held-out sentences, %")
    axes.set_title("SST-2, a language model of 4.3 million parameters (thin lines: one seed each)", fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.08), frameon=False, fontsize=9, reverse=True)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=140)
    plt.close(figure)


def _points(runs: Sequence[Sequence[dict[str, Any]]]) -> tuple[list[float], list[float]]:
    """Mean seconds and mean accuracy of each evaluation after the one before training."""
    evaluations = list(zip(*(run[1:] for run in runs), strict=True))
    seconds = [statistics.mean(point["seconds"] for point in points) for points in evaluations]
    return seconds, [100 * statistics.mean(point["accuracy"] for point in points) for points in evaluations]


def _untrained(results: Path) -> float:
    """Held-out accuracy of the model as it was: the same for all."""
    (accuracy,) = {cell["evaluations"][0]["accuracy"] for line in LINES for cell in cells(results, line)}
    return float(accuracy)


def table(results: Path) -> str:
    """Test accuracy and time of the methods in the picture: mean and standard deviation over seeds."""
    lines = ["| | steps | training time | test accuracy |", "|---|---|---|---|"]
    for line in LINES:
        runs = cells(results, line)
        accuracy = [100 * run["test"]["accuracy"] for run in runs]
        minutes = statistics.mean(run["seconds"] for run in runs) / 60
        name = line.name.partition(":")[0].removesuffix(", for comparison")
        lines.append(
            f"| {name} | {runs[0]['steps']:,} | {minutes:.1f} min "
            f"| {statistics.mean(accuracy):.1f} ± {statistics.stdev(accuracy):.1f} % |"
        )
    return "\n".join(lines)


def memory(benchmarks: Path) -> str:
    """What training takes in memory, as the benchmark measured it last."""
    rows = {row["figure"]: row for row in map(json.loads, benchmarks.read_text(encoding="utf-8").splitlines())}
    ratios = [
        f"{rows[f'peak memory of {what} over inference, MiB beside']['ratio']:.2f}"
        for what in ("training", "backpropagation")
    ]
    return (
        f"In the shape of OPT-125m, training took {ratios[0]} times the memory of inference, backpropagation "
        f"{ratios[1]} times."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--page", type=Path, default=ROOT / "README.md")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "accuracy.png")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results.jsonl")
    parser.add_argument("--benchmarks", type=Path, default=ROOT / "benchmarks" / "results.jsonl")
    options = parser.parse_args()
    draw(options.results, options.picture)
    put(options.page, "result", table(options.results) + "\n\n" + memory(options.benchmarks))
    print(options.picture, options.page, sep="\n")


if __name__ == "__main__":
    main()
