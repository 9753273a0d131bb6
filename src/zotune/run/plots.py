"""Plots of runs and studies, from run folders alone: loss, evaluations, step time, reuse. PNG and SVG."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from zotune.errors import InputError
from zotune.files import write_whole
from zotune.run.folder import RunFolder
from zotune.run.metrics import EvalEvent, StepEvent, read_metrics, wilson_interval

matplotlib.rcParams["text.parse_math"] = False  # the name of a run may have a dollar sign


def plot_runs(run_folders: Sequence[Path], output_dir: Path | None = None) -> list[Path]:
    """Draw the runs over each other; returns the files written.

    Raises:
        InputError: a folder without readable metrics.jsonl, or one that cannot be written.
    """
    runs = {name: read_metrics(RunFolder(path).metrics) for name, path in _names(run_folders).items()}
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), constrained_layout=True)
    (loss, evaluation), (time, reuse) = axes
    _plot_evaluations(evaluation, [[e for e in events if isinstance(e, EvalEvent)] for events in runs.values()])
    for index, (name, events) in enumerate(runs.items()):
        steps = [event for event in events if isinstance(event, StepEvent)]
        x, color = [event.step for event in steps], f"C{index}"
        losses = np.array([event.measured.get("reward", event.loss) for event in steps])
        milliseconds = 1000 * np.array([event.step_time_s for event in steps])
        computed = np.cumsum([event.tokens_computed for event in steps])
        reused = np.cumsum([event.tokens_reused for event in steps])
        # Single steps are rasterized: an SVG would hold a path for each of them.
        loss.plot(x, losses, color=color, alpha=0.2, linewidth=0.8, rasterized=True)
        loss.plot(x, moving_average(losses), color=color, label=name)
        time.plot(x, milliseconds, ".", color=color, markersize=2, alpha=0.4, rasterized=True)
        time.plot(x, moving_average(milliseconds), color=color)
        reuse.plot(x, 100 * reused / np.maximum(1, reused + computed), color=color)
    what = _what(runs.values())
    _label(loss, f"Training {what} (line: moving average)", what)
    _label(time, "Step time (line: moving average)", "milliseconds")
    _label(reuse, "Tokens served from cache, so far", "% of tokens")
    time.set_ylim(bottom=0)
    reuse.set_ylim(-2, 102)
    if len(runs) == 1:
        figure.suptitle(next(iter(runs)))
    else:
        widest = max(map(len, runs))
        figure.legend(loc="outside upper center", ncols=max(1, min(len(runs), 100 // (widest + 8))))

    folder = output_dir or RunFolder(run_folders[0]).plots
    stem = "training" if len(runs) == 1 else "comparison"
    files = [folder / f"{stem}.png", folder / f"{stem}.svg"]
    try:
        _write(figure, files)
    except OSError as error:
        raise InputError(f"--output-dir: cannot write plots to {folder}: {error.strerror}") from error
    finally:
        plt.close(figure)
    return files


def plot_comparison(outcomes: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Evaluations over tokens and over seconds, a panel for each task, a line for each outcome of a study's cells."""
    tasks, names = (list(dict.fromkeys(outcome[key] for outcome in outcomes)) for key in ("task", "method"))
    figure, axes = plt.subplots(
        2, len(tasks), figsize=(1 + 4.5 * len(tasks), 7.5), constrained_layout=True, squeeze=False
    )
    for column, task in enumerate(tasks):
        for axis, what in zip(axes[:, column], ("million tokens computed", "seconds of training"), strict=True):
            spent, scale = ("tokens", 1e-6) if what.startswith("million") else ("seconds", 1.0)
            _label(axis, task, "accuracy, %")
            axis.set_xlabel(what)
            axis.set_xscale("symlog", linthresh=0.1 if what.startswith("million") else 1.0)
            for outcome in outcomes:
                if outcome["task"] == task:
                    points = [point for point in outcome["evaluations"] if point["accuracy"] is not None]
                    x, y = [point[spent] * scale for point in points], [100 * point["accuracy"] for point in points]
                    axis.plot(x, y, ".-", color=f"C{names.index(outcome['method'])}", markersize=3, linewidth=0.9)
    lines = [plt.Line2D([], [], color=f"C{index}") for index in range(len(names))]
    figure.legend(lines, names, loc="outside upper center", ncols=4)
    files = [folder / "comparison.png", folder / "comparison.svg"]
    _write(figure, files)
    plt.close(figure)
    return files


def _write(figure: Any, files: Sequence[Path]) -> None:
    """Write a figure into files of the formats that their names say."""
    for path in files:
        write_whole(path, partial(figure.savefig, dpi=130, format=path.suffix.removeprefix(".")))


def moving_average(values: np.ndarray, share: int = 20, least: int = 10) -> np.ndarray:
    """Mean of the last len/share values, or of the last `least` if that is more, up to each point."""
    window = max(least, len(values) // share)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _plot_evaluations(axes: Axes, runs: Sequence[Sequence[EvalEvent]]) -> None:
    """Losses; where every evaluation has an accuracy, that comes first and the losses are dashed on a second axis."""
    with_accuracy = all(event.accuracy is not None for evals in runs for event in evals)
    _label(axes, "Evaluation", "accuracy, % (band: 95 % interval)" if with_accuracy else _what(runs))
    losses = axes.twinx() if with_accuracy else axes
    if with_accuracy:
        losses.set_ylabel("loss (dashed)")
    for index, evals in enumerate(runs):
        x, color = [event.step for event in evals], f"C{index}"
        style = {"linestyle": "--", "alpha": 0.7} if with_accuracy else {"marker": "o", "markersize": 3}
        losses.plot(x, [event.measured.get("reward", event.loss) for event in evals], color=color, linewidth=1, **style)  # type: ignore[arg-type]
        if with_accuracy:
            intervals = [wilson_interval(event.accuracy or 0.0, event.num_examples) for event in evals]
            axes.plot(x, [100 * (event.accuracy or 0.0) for event in evals], "o-", color=color, markersize=3)
            axes.fill_between(
                x, [100 * low for low, _ in intervals], [100 * high for _, high in intervals], color=color, alpha=0.12,
                linewidth=0,
            )  # fmt: skip


def _what(runs: Iterable[Sequence[StepEvent | EvalEvent]]) -> str:
    """What runs are judged by."""
    return "reward" if all("reward" in event.measured for events in runs for event in events) else "loss"


def _label(axes: Axes, title: str, ylabel: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)


def _names(paths: Sequence[Path]) -> dict[str, Path]:
    """Folder names as labels; whole paths where two are the same."""
    names = [path.resolve().name for path in paths]
    return {name if names.count(name) == 1 else str(path): path for name, path in zip(names, paths, strict=True)}
