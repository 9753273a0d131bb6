"""Train a model, and go on with a run that was stopped."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Self

import tyro

from zotune.config.reading import make_config, read_settings
from zotune.config.settings import Config


@dataclass(frozen=True)
class Train(Config):
    """Fine-tune a model. A file with the same settings, in TOML or YAML, may stand first, or behind --config: zotune
    train run.toml --seed 3"""

    def __post_init__(self) -> None:
        """Checked in `config`: an error raised here would reach the user in the parser's words."""

    @classmethod
    def from_file(cls, path: Path) -> Self:
        return cls(**vars(read_settings(path)))

    @property
    def config(self) -> Config:
        """What was asked for, checked."""
        return make_config({field.name: getattr(self, field.name) for field in fields(Config)})

    def run(self) -> None:
        config = self.config  # before PyTorch is loaded, which takes seconds

        from zotune.commands.console import ConsoleProgress, set_up_logging
        from zotune.finetune import run, start_run

        set_up_logging()
        progress = ConsoleProgress()
        try:
            result = run(start_run(config, callbacks=[progress]))
        finally:
            progress.close()
        _finish(result.summary, result.run_folder)


@dataclass(frozen=True)
class Resume:
    """Go on with a run that was stopped, after the last step in its journal."""

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """The run folder."""

    reward: tuple[str, ...] = ()
    """The run's rewards once more, where they are code: that is never taken from a run folder."""

    trust_remote_code: bool = False
    """Run Python code that comes with a model from the hub. Only for models whose code you have read."""

    def run(self) -> None:
        from zotune.commands.console import ConsoleProgress, set_up_logging
        from zotune.finetune import resume

        set_up_logging()
        progress = ConsoleProgress()
        try:
            result = resume(
                self.run_folder, callbacks=[progress], trust_remote_code=self.trust_remote_code,
                reward_funcs=self.reward or None,
            )  # fmt: skip
        finally:
            progress.close()
        _finish(result.summary, result.run_folder)


def _finish(summary: dict[str, Any], folder: Path) -> None:
    from zotune.commands.results import print_summary
    from zotune.run.plots import plot_runs

    plot_runs([folder])
    print_summary(summary, folder)
