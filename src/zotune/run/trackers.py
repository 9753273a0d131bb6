"""Where people watch experiments: TensorBoard, Weights & Biases, Trackio and MLflow, each through its own package.

A tracker takes numbers and texts by step. None of the packages is needed by zotune; each is imported when a run starts
that reports to it, and has its own environment variables. Names of numbers are transformers': train/loss, eval/loss.
"""

import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from zotune.errors import InputError

PROJECT = "zotune"


@dataclass(frozen=True)
class Reported:
    """The run that is reported: its folder, its name, what identifies it, its settings, and the step it starts after.

    `key` is the same after a resume, so that what is reported then belongs to the same run.
    """

    folder: Path
    name: str
    key: str
    settings: Mapping[str, Any]
    step: int


class Tracker(ABC):
    """A row of TRACKERS."""

    package: ClassVar[str]

    @abstractmethod
    def __init__(self, run: Reported) -> None: ...

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None: ...

    @abstractmethod
    def log_text(self, name: str, text: str, step: int) -> None:
        """A text in Markdown."""

    @abstractmethod
    def close(self) -> None: ...


class TensorBoard(Tracker):
    """Event files in RUN/tensorboard, which `tensorboard --logdir` finds."""

    package = "tensorboard"

    def __init__(self, run: Reported) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.step + 1 if run.step else None)
        if not run.step:
            self._writer.add_text("settings", "\n".join(f"- {name}: `{value}`" for name, value in run.settings.items()))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def log_text(self, name: str, text: str, step: int) -> None:
        self._writer.add_text(name, text, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb(Tracker):
    """Weights & Biases: WANDB_PROJECT, WANDB_MODE=offline and its others hold."""

    package = "wandb"

    def __init__(self, run: Reported) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=run.name, id=run.key, resume="allow",
            dir=str(run.folder), config=dict(run.settings),
        )  # fmt: skip

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def log_text(self, name: str, text: str, step: int) -> None:
        import wandb

        self._run.log({name: wandb.Table(columns=["step", "text"], data=[[step, text]])}, step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio(Tracker):
    """Trackio keeps runs on this machine unless TRACKIO_SPACE_ID says otherwise."""

    package = "trackio"

    def __init__(self, run: Reported) -> None:
        import trackio

        self._trackio = trackio
        trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=f"{run.name}-{run.key[:6]}", resume="allow",
            space_id=os.environ.get("TRACKIO_SPACE_ID"), config=dict(run.settings), embed=False,
        )  # fmt: skip

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._trackio.log(dict(values), step=step)

    def log_text(self, name: str, text: str, step: int) -> None:
        self._trackio.log({name: self._trackio.Markdown(text)}, step=step)

    def close(self) -> None:
        self._trackio.finish()


class Mlflow(Tracker):
    """MLflow: MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME hold. Samples are artifacts."""

    package = "mlflow"

    def __init__(self, run: Reported) -> None:
        import mlflow

        self._mlflow = mlflow
        experiment = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        known = mlflow.search_runs(
            [experiment.experiment_id], f"tags.zotune_run = '{run.key}'", max_results=1, output_format="list"
        )
        if known:
            mlflow.start_run(known[0].info.run_id)
            return
        mlflow.start_run(run_name=run.name, tags={"zotune_run": run.key})
        mlflow.log_params({name: str(value)[:500] for name, value in run.settings.items()})  # its own limit

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def log_text(self, name: str, text: str, step: int) -> None:
        self._mlflow.log_text(text, f"{name}/{step}.md")

    def close(self) -> None:
        self._mlflow.end_run()


TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow": Mlflow,
}
NONE = "none"


def check_names(names: Iterable[str]) -> None:
    """Refuse trackers that there are not.

    Raises:
        InputError: says which there are.
    """
    for name in names:
        if name not in (*TRACKERS, NONE):
            raise InputError(f"--report-to: there is no {name!r}; choose from {', '.join((*TRACKERS, NONE))}")


def check_packages(names: Iterable[str]) -> None:
    """Refuse trackers whose package is not installed.

    Raises:
        InputError: says what to install.
    """
    for name in set(names) - {NONE}:
        package = TRACKERS[name].package
        if importlib.util.find_spec(package) is None:
            raise InputError(f"--report-to {name}: the package {package} is not installed; pip install {package}")
