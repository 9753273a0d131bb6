"""Several runs from one TOML file: compare methods, or search a grid."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from zotune.config.reading import toml_values
from zotune.errors import InputError
from zotune.files import write_whole
from zotune.values import folder_of, path_of, whole_of


@dataclass(frozen=True)
class Compare:
    """Train several methods on tasks and seeds at equal budgets, as a TOML file says; goes on where it stopped."""

    study: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STUDY.toml")]
    """The study; docs/comparing.md shows one."""

    output_dir: str | None = None
    """Where the run folders go; default: the study's output_dir, or output/NAME."""

    def run(self) -> None:
        study = _study(self.study, self.output_dir)

        from zotune.commands.console import set_up_logging
        from zotune.run.plots import plot_comparison
        from zotune.study.cells import markdown
        from zotune.study.compare import HEADING, run_comparison, table

        set_up_logging()
        outcomes = []
        for outcome in run_comparison(study):
            outcomes.append(outcome)
            text = markdown(HEADING, table(outcomes))
            write_whole(study.output / "table.md", text.encode())
        print(text)
        print(study.output / "table.md", *plot_comparison(outcomes, study.output), sep="\n")


@dataclass(frozen=True)
class Sweep:
    """Search the grid of a TOML file by successive halving, within its budget; goes on where it stopped."""

    study: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STUDY.toml")]
    """The study, with a [grid]; docs/comparing.md shows one."""

    output_dir: str | None = None
    """Where the run folders go; default: the study's output_dir, or output/NAME."""

    keep: int = 3
    """After each round, one in this many settings goes on."""

    def run(self) -> None:
        keep = whole_of(self.keep, "--keep", 2, 10**6)
        study = _study(self.study, self.output_dir)
        points = len({cell.method for cell in study.cells})
        if keep > max(points, 3):
            raise InputError(f"--keep must be at most {max(points, 3)}, got {keep}: the grid has {points} points")

        from zotune.commands.console import set_up_logging
        from zotune.study.cells import markdown
        from zotune.study.sweep import HEADING, run_sweep

        set_up_logging()
        print(markdown(HEADING, run_sweep(study, keep)))


def _study(path: str, output_dir: str | None) -> Any:
    if output_dir is not None:
        folder_of(output_dir, "--output-dir")
    study = Path(path_of(path, "STUDY.toml"))
    toml_values(study)  # before PyTorch is loaded, which takes seconds

    from zotune.study.cells import read_study

    return read_study(study, output_dir)
