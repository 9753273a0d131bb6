"""What a person sees of a run: a progress bar on a terminal, plain lines elsewhere, a table at the end."""

import logging
import sys
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from zotune.data.tasks import TASKS
from zotune.run.metrics import EvalEvent, StepEvent, wilson_interval
from zotune.run.trainer import Callback, MeZOTrainer
from zotune.tools.analyze import Analysis
from zotune.tools.profile import Region

PLAIN_LINES = 20


def set_up_logging() -> None:
    """Our own messages on standard error; third parties' only from warnings up."""
    import transformers
    from datasets.utils import logging as datasets_logging

    transformers.utils.logging.set_verbosity_error()
    datasets_logging.set_verbosity_error()
    logger = logging.getLogger("zotune")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if sys.stderr.isatty():
        handler = RichHandler(console=RichConsole(stderr=True), show_time=False, show_path=False, show_level=False)
    logger.handlers = [handler]


class ConsoleProgress(Callback):
    """Shows a run as it goes, on standard error."""

    def __init__(self) -> None:
        self.console = RichConsole(stderr=True, highlight=False)
        self.progress: Progress | None = None
        self.loss: float | None = None

    def on_train_begin(self, trainer: MeZOTrainer) -> None:
        self.num_steps, self.started_at = trainer.plan.num_steps, trainer.step
        self.console.print(f"run folder: {trainer.folder.path}", soft_wrap=True)
        for event in trainer.evaluations:
            self.on_evaluate(event)
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.4f}"), TimeElapsedColumn(), TimeRemainingColumn(),
            )  # fmt: skip
            self.progress = Progress(*columns, console=self.console)
            self.bar = self.progress.add_task(
                "training", total=self.num_steps, completed=trainer.step, loss=float("nan")
            )
            self.progress.start()

    def on_step_end(self, event: StepEvent) -> None:
        self.loss = event.loss if self.loss is None else 0.95 * self.loss + 0.05 * event.loss
        if self.progress:
            self.progress.update(self.bar, completed=event.step, loss=self.loss)
        elif event.step % max(1, self.num_steps // PLAIN_LINES) == 0:
            self.console.print(
                f"step {event.step}/{self.num_steps}  loss {self.loss:.4f}  {1 / event.step_time_s:.1f} steps/s"
            )

    def on_evaluate(self, event: EvalEvent) -> None:
        accuracy = "" if event.accuracy is None else f"accuracy {event.accuracy:.1%}, "
        self.console.print(
            f"evaluation after {event.step} steps: {accuracy}loss {event.loss:.4f} ({event.num_examples} examples)"
        )

    def on_train_end(self, trainer: MeZOTrainer) -> None:
        self.close()

    def close(self) -> None:
        """Put the terminal back, also when training ended early."""
        if self.progress:
            self.progress.stop()
            self.progress = None


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """The table at the end of a run, on standard output."""
    table = Table(title=f"{summary['task']} on {summary['model']}, {summary['steps']} steps", title_justify="left")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    initial, final = summary["initial"], summary["final"]
    if initial and final:
        if final["accuracy"] is not None:
            table.add_row("held-out accuracy", _accuracy(initial), _accuracy(final))
        table.add_row("held-out loss", f"{initial['loss']:.4f}", f"{final['loss']:.4f}")
        table.add_row("held-out examples", "", f"{final['num_examples']:,}")
        table.add_section()
    table.add_row("steps/s", "", f"{summary['steps_per_s']:.2f}")
    table.add_row("tokens computed", "", f"{summary['tokens_computed']:,}")
    table.add_row("tokens reused", "", f"{summary['tokens_reused']:,} ({summary['kv_reuse']:.1%})")
    table.add_row("peak memory", "", f"{summary['peak_memory_bytes'] / 2**20:,.0f} MiB")
    console = RichConsole(highlight=False)
    console.print(table)
    console.print(f"run folder: {folder} ({summary['exported']}: {folder / summary['exported']})", soft_wrap=True)


def print_evaluation(metrics: dict[str, Any]) -> None:
    """One evaluation as a table, on standard output."""
    table = Table()
    table.add_column("")
    table.add_column("", justify="right")
    if metrics["accuracy"] is not None:
        table.add_row("accuracy", _accuracy(metrics))
    table.add_row("loss", f"{metrics['loss']:.4f}")
    table.add_row("examples", f"{metrics['num_examples']:,}")
    table.show_header = False
    RichConsole(highlight=False).print(table)


def print_tasks() -> None:
    """The built-in tasks, on standard output."""
    table = Table(show_lines=True)
    for title in ("task", "prompt + invocation + answer", "labels", "data set"):
        table.add_column(title, overflow="fold")  # rather than cut: these are there to be copied
    for task in TASKS.values():
        answer = "" if task.labels else task.completion
        text = f"{task.template}{task.invocation}{answer}".replace("\n", "\\n")
        source = "comes with zotune" if task.demo else task.hub.path if task.hub else "your own (--train-data)"
        table.add_row(task.name, text, ", ".join(task.labels) or "-", source)
    RichConsole(highlight=False, markup=False).print(table)


def print_analysis(analysis: Analysis) -> None:
    """Slopes over eps, then the two passes' KV layer by layer, on standard output."""
    console = RichConsole(highlight=False)
    table = Table("eps", "|slope|", "error with reused KV", "same sign", "curvature", "moves", "|dK|/|K|", "|dV|/|V|")
    for row in analysis.rows:
        table.add_row(
            f"{row.epsilon:g}", f"{row.slope_size:.4f}", f"{row.reused_error:.1%}", f"{row.sign_agreement:.0%}",
            f"{row.curvature:.3g}", f"{row.change:.2%}", f"{row.key_difference:.1e}", f"{row.value_difference:.1e}",
        )  # fmt: skip
    console.print(table)
    layers = Table("layer", "cosine K+, K-", "|dK|/|K|", "cosine V+, V-", "|dV|/|V|")
    for number, layer in enumerate(analysis.layers):
        layers.add_row(
            str(number), f"{layer['key_cosine']:.8f}", f"{layer['key_difference']:.1e}",
            f"{layer['value_cosine']:.8f}", f"{layer['value_difference']:.1e}",
        )  # fmt: skip
    console.print(layers)
    console.print(
        f"recommended eps: {analysis.recommended_epsilon:g} (the exact slope moves least to its neighbours); "
        f"rounding error of the loss: about {analysis.rounding_error:.0e}",
        soft_wrap=True,
    )


def print_profile(regions: list[Region], num_steps: int) -> None:
    """Time per step by region, on standard output."""
    step = next(region for region in regions if region.name == "step")
    table = Table("region", "calls", "ms a step", "% of a step", "device, ms")
    for region in regions:
        table.add_row(
            region.name, str(region.calls), f"{1000 * region.cpu_s / num_steps:.2f}",
            f"{100 * region.cpu_s / step.cpu_s:.1f}", f"{1000 * region.device_s / num_steps:.2f}",
        )  # fmt: skip
    RichConsole(highlight=False).print(table)


def _accuracy(metrics: dict[str, Any]) -> str:
    low, high = wilson_interval(metrics["accuracy"], metrics["num_examples"])
    return f"{metrics['accuracy']:.1%} [{low:.1%}, {high:.1%}]"
