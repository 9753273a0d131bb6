"""Plots of runs, from their folders alone: loss, evaluations, step time, reuse. PNG and SVG."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from zotune.metrics import EvalEvent, StepEvent, read_metrics
from zotune.run_folder import RunFolder


def plot_runs(run_folders: Sequence[Path], output_dir: Path | None = None) -> list[Path]:
    """Draw the runs over each other; returns the files written.

    Raises:
        InputError: a folder without readable metrics.jsonl.
    """
    runs = {name: read_metrics(RunFolder(path).metrics) for name, path in _names(run_folders).items()}
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), constrained_layout=True)
    (loss, evaluation), (time, reuse) = axes
    for index, (name, events) in enumerate(runs.items()):
        steps = [event for event in events if isinstance(event, StepEvent)]
        evals = [event for event in events if isinstance(event, EvalEvent)]
        label, color = name if len(runs) > 1 else None, f"C{index}"
        x = [event.step for event in steps]
        losses = np.array([event.loss for event in steps])
        loss.plot(x, losses, color=color, alpha=0.2, linewidth=0.8)
        loss.plot(x, moving_average(losses), color=color, label=label or "moving average")
        _plot_evaluations(evaluation, evals, color, label)
        milliseconds = 1000 * np.array([event.step_time_s for event in steps])
        time.plot(x, milliseconds, ".", color=color, markersize=2, alpha=0.4)
        time.plot(x, moving_average(milliseconds), color=color, label=label or "moving average")
        computed = np.cumsum([event.tokens_computed for event in steps])
        reused = np.cumsum([event.tokens_reused for event in steps])
        reuse.plot(x, 100 * reused / np.maximum(1, reused + computed), color=color, label=label)
    _finish(loss, "Training loss", "loss")
    _finish(evaluation, "Evaluation", evaluation.get_ylabel() or "loss")
    _finish(time, "Step time", "milliseconds")
    _finish(reuse, "Tokens served from cache, so far", "% of tokens")
    reuse.set_ylim(-2, 102)
    folder = output_dir or RunFolder(run_folders[0]).plots
    folder.mkdir(parents=True, exist_ok=True)
    stem = "training" if len(runs) == 1 else "comparison"
    files = [folder / f"{stem}.png", folder / f"{stem}.svg"]
    for path in files:
        figure.savefig(path, dpi=130)
    plt.close(figure)
    return files


def moving_average(values: np.ndarray, share: int = 20) -> np.ndarray:
    """Mean of the last len/share values (at least one) up to each point."""
    if not len(values):
        return values
    window = max(1, len(values) // share)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _plot_evaluations(axes: Axes, evals: list[EvalEvent], color: str, label: str | None) -> None:
    """Accuracy where there is one, with its loss dashed on a second axis; else the loss."""
    x = [event.step for event in evals]
    accuracies = [event.accuracy for event in evals]
    if any(accuracy is None for accuracy in accuracies):
        axes.plot(x, [event.loss for event in evals], "o-", color=color, markersize=3, label=label)
        return
    axes.set_ylabel("accuracy, % (line) ")
    axes.plot(x, [100 * (a or 0.0) for a in accuracies], "o-", color=color, markersize=3, label=label or "accuracy")
    if not hasattr(axes, "loss_axes"):
        axes.loss_axes = axes.twinx()  # type: ignore[attr-defined]
        axes.loss_axes.set_ylabel("loss (dashed)")  # type: ignore[attr-defined]
    axes.loss_axes.plot(x, [event.loss for event in evals], "--", color=color, linewidth=1, alpha=0.7)  # type: ignore[attr-defined]


def _finish(axes: Axes, title: str, ylabel: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small")


def _names(paths: Sequence[Path]) -> dict[str, Path]:
    """Folder names as labels; whole paths where two are the same."""
    names = [path.resolve().name for path in paths]
    return {name if names.count(name) == 1 else str(path): path for name, path in zip(names, paths, strict=True)}
