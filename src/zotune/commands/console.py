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

from zotune.commands.results import print_samples
from zotune.run.metrics import EvalEvent, StepEvent
from zotune.run.samples import read_samples
from zotune.run.trainer import Callback, MeZOTrainer
from zotune.zo.objectives import RewardObjective

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
        self.shown: float | None = None  # a moving mean of what is shown of the steps

    def on_train_begin(self, trainer: MeZOTrainer) -> None:
        self.num_steps, self.samples = trainer.plan.num_steps, trainer.folder.samples
        self.pace = trainer.plan.logging_steps or max(1, self.num_steps // PLAIN_LINES)
        self.name = "reward" if isinstance(trainer.objective, RewardObjective) else "loss"
        self.console.print(f"run folder: {trainer.folder.path}", soft_wrap=True)
        for event in trainer.evaluations:
            self.on_evaluate(event)
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn(self.name + " {task.fields[shown]:.4f}"), TextColumn("{task.fields[pace]}"),
                TimeElapsedColumn(), TimeRemainingColumn(),
            )  # fmt: skip
            self.progress = Progress(*columns, console=self.console)
            self.bar = self.progress.add_task(
                "training", total=self.num_steps, completed=trainer.step, shown=float("nan"), pace=""
            )
            self.progress.start()

    def on_step_end(self, event: StepEvent) -> None:
        now = event.measured.get("reward", event.loss)
        self.shown = now if self.shown is None else 0.95 * self.shown + 0.05 * now
        pace = f"{1 / event.step_time_s:.1f} steps/s"
        if event.measured:
            pace = f"{event.tokens_computed / event.step_time_s:,.0f} tokens/s"
        if self.progress:
            self.progress.update(self.bar, completed=event.step, shown=self.shown, pace=pace)
        elif event.step % self.pace == 0:
            self.console.print(f"step {event.step}/{self.num_steps}  {self.name} {self.shown:.4f}  {pace}")

    def on_evaluate(self, event: EvalEvent) -> None:
        if event.measured:
            self.console.print(
                f"evaluation after {event.step} steps: reward {event.measured['reward']:.4f} ({event.num_examples} "
                f"prompts, {event.measured['completion_length']:.0f} tokens each)"
            )
            print_samples(self.console, [line for line in read_samples(self.samples) if line["step"] == event.step])
            return
        accuracy = "" if event.accuracy is None else f"accuracy {event.accuracy:.1%}, "
        accuracy += "".join(f"{name} {value:.4g}, " for name, value in event.scores.items())
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
