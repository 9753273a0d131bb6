"""What a person sees of a run: a progress bar on a terminal, plain lines elsewhere."""

import logging
import sys

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

from zotune.run.metrics import EvalEvent, StepEvent
from zotune.run.trainer import Callback, MeZOTrainer

PLAIN_LINES = 20


def set_up_logging() -> None:
    """Our own messages on standard error; third parties' only from warnings up."""
    import transformers
    from datasets.utils import logging as datasets_logging

    transformers.utils.logging.set_verbosity_error()
    datasets_logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a package that it could do with
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
        self.console = RichConsole(stderr=True, highlight=False, markup=False, emoji=False)
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
