"""Read run folders: the adapter at any step, and plots."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from zotune.errors import InputError
from zotune.values import folder_of, path_of


@dataclass(frozen=True)
class Replay:
    """Write the adapter as it was after any step of a run, from the run's journal alone. No model is loaded.

    After full-parameter training the base model is needed, and a model folder is written.
    """

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """The run folder."""

    output_dir: str
    """Where to write the adapter (or model); must not exist."""

    step: int | None = None
    """The step. Default: the last."""

    trust_remote_code: bool = False
    """Run Python code that comes with a model from the hub, after full-parameter training."""

    def run(self) -> None:
        from zotune.adapter.peft_files import CONFIG_FILE
        from zotune.replay import replay_run

        step = replay_run(self.run_folder, self.output_dir, self.step, self.trust_remote_code)
        kind = "adapter" if (Path(self.output_dir) / CONFIG_FILE).exists() else "model"
        print(f"{kind} after step {step}: {self.output_dir}")


@dataclass(frozen=True)
class Plot:
    """Draw loss, evaluations, step time and reuse of one run, or of several runs in one figure."""

    run_folders: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """The run folders."""

    output_dir: str | None = None
    """Where to write the PNG and SVG. Default: plots/ in the first run folder."""

    def run(self) -> None:
        from zotune.run.plots import plot_runs

        if not self.run_folders:
            raise InputError("name at least one run folder: zotune plot RUN [RUN ...]")
        folder = None if self.output_dir is None else folder_of(self.output_dir, "--output-dir")
        for path in plot_runs([Path(path_of(run, "RUN")) for run in self.run_folders], folder):
            print(path)
