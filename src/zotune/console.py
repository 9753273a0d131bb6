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
from zotune.metrics import EvalEvent, StepEvent, wilson_interval
from zotune.train import Callback, MeZOTrainer

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
    console.print(f"run folder: {folder} (adapter: {folder / 'adapter'})", soft_wrap=True)


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


def _accuracy(metrics: dict[str, Any]) -> str:
    low, high = wilson_interval(metrics["accuracy"], metrics["num_examples"])
    return f"{metrics['accuracy']:.1%} [{low:.1%}, {high:.1%}]"
