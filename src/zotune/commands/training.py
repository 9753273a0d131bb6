"""Train a model, and what comes before and after: the tasks, where the time goes, resume, replay and plots."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from zotune.adapter.peft_files import CONFIG_FILE
from zotune.config.settings import Config
from zotune.errors import InputError


@dataclass(frozen=True)
class Train(Config):
    """Fine-tune a model. A TOML file with the same settings may stand first: zotune train run.toml --seed 3"""

    def __post_init__(self) -> None:
        """Checked in `run`: an error raised here would reach the user in the parser's words."""

    def run(self) -> None:
        settings = {field.name: getattr(self, field.name) for field in fields(Config)}
        Config(**settings)  # before PyTorch is loaded, which takes seconds

        from zotune.commands.console import ConsoleProgress, set_up_logging
        from zotune.finetune import mezo_finetune

        set_up_logging()
        progress = ConsoleProgress()
        try:
            result = mezo_finetune(**settings, callbacks=[progress])
        finally:
            progress.close()
        _finish(result.summary, result.run_folder)


@dataclass(frozen=True)
class Profile(Train):
    """Show where the time of a training step goes: a table, and a Chrome trace in the run folder.

    Takes the settings of train; --num-steps is the number of steps to profile.
    """

    num_steps: int = 10
    """Steps to profile, after two that are not counted."""

    def run(self) -> None:
        settings = {field.name: getattr(self, field.name) for field in fields(Config)}
        Config(**settings)

        from zotune.commands.console import print_profile, set_up_logging
        from zotune.finetune import make_trainer
        from zotune.tools.profile import profile_steps

        set_up_logging()
        with make_trainer(**settings) as trainer:
            trace = trainer.folder.path / "trace.json"
            print_profile(profile_steps(trainer, self.num_steps, trace), self.num_steps)
            print(f"trace, for a browser's tracing page: {trace}")


@dataclass(frozen=True)
class Resume:
    """Go on with a run that was stopped, from the last step of its journal."""

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """The run folder."""

    def run(self) -> None:
        from zotune.commands.console import ConsoleProgress, set_up_logging
        from zotune.finetune import resume

        set_up_logging()
        progress = ConsoleProgress()
        try:
            result = resume(self.run_folder, callbacks=[progress])
        finally:
            progress.close()
        _finish(result.summary, result.run_folder)


@dataclass(frozen=True)
class Replay:
    """Rebuild the adapter at any step of a run from its journal; no model is loaded.

    After full-parameter training it is the model that is rebuilt, from the base model, which must be at hand.
    """

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """The run folder."""

    output_dir: str
    """Where to write the adapter (or model); must not exist."""

    step: int | None = None
    """The step; default: the last."""

    def run(self) -> None:
        from zotune.run.replay import replay_run

        step = replay_run(self.run_folder, self.output_dir, self.step)
        kind = "adapter" if (Path(self.output_dir) / CONFIG_FILE).exists() else "model"
        print(f"{kind} after step {step}: {self.output_dir}")


@dataclass(frozen=True)
class Plot:
    """Plot loss, evaluations, step time and reuse of one run, or of several over each other."""

    run_folders: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """The run folders."""

    output_dir: str | None = None
    """Where to write the PNG and SVG; default: plots/ in the first run folder."""

    def run(self) -> None:
        from zotune.run.plots import plot_runs

        if not self.run_folders:
            raise InputError("name at least one run folder: zotune plot RUN [RUN ...]")
        for path in plot_runs(
            [Path(run) for run in self.run_folders], Path(self.output_dir) if self.output_dir else None
        ):
            print(path)


@dataclass(frozen=True)
class Tasks:
    """List the built-in tasks with their templates, labels and data sets."""

    def run(self) -> None:
        from zotune.commands.console import print_tasks

        print_tasks()


def _finish(summary: dict[str, Any], folder: Path) -> None:
    from zotune.commands.console import print_summary
    from zotune.run.plots import plot_runs

    plot_runs([folder])
    print_summary(summary, folder)
