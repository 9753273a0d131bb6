"""A study: many runs from one TOML, methods x tasks x seeds at equal budgets. compare.py and sweep.py run it.

A cell is one run, in a folder of its own. A finished cell is never run again, and an unfinished one goes on from its
journal, so a study may be stopped anywhere. Nothing is kept but the run folders: tables are read off them.

    output_dir = "study"          # cells go to study/METHOD/TASK/seed-N
    seeds = [0, 1, 2]
    budget = { seconds = 60 }     # of training, for each cell: seconds, tokens (computed) or steps

    [settings]                    # for all cells: any setting of `zotune train`
    model = "facebook/opt-125m"

    [tasks.imdb]                  # settings of a task; two more names are known here:
    task = "imdb"
    test_data = "test.jsonl"      # what the best adapter of a cell is evaluated on
    target_accuracy = 0.8         # the table says when a cell's evaluations reached it

    [methods.quick]               # settings of a method; first_order = true is --estimator backprop
    directions = 4

    [grid]                        # for `sweep`, instead of methods: values to try, all with all
    learning_rate = [1e-4, 1e-3]
"""

import itertools
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from zotune.config.ranges import MANY
from zotune.config.reading import make_config, toml_values
from zotune.config.settings import Config
from zotune.engine.memory import reset_peak_memory
from zotune.errors import DiskError, InputError, TrainingError
from zotune.finetune import resume, run, start_run
from zotune.run.folder import RunFolder
from zotune.run.journal.reading import begins_a_run
from zotune.run.metrics import EvalEvent, StepEvent, read_metrics, write_json
from zotune.run.trainer import Callback, MeZOTrainer
from zotune.values import folder_of, is_number, path_of, shown, whole_of

UNITS = {"steps": lambda event: 1, "tokens": lambda event: event.tokens_computed, "seconds": lambda e: e.step_time_s}
OF_DIRECTIONS = ("directions", "noise", "noise_steps", "noise_blocks", "sparsity", "clip")  # no use to backpropagation
MOST_CELLS = 10_000
MOST_BUDGET = 10**15
NOT_ASKED = {"output_dir", "overwrite", "device", "num_threads", "kv_cache_gb", "trust_remote_code"}
TASK_ONLY = ("test_data", "test_samples", "target_accuracy")
logger = logging.getLogger("zotune")


@dataclass(frozen=True)
class Budget:
    """An amount of training, summed over the steps of a run."""

    unit: str
    amount: float

    def spent(self, events: list[StepEvent | EvalEvent]) -> float:
        return float(sum(UNITS[self.unit](event) for event in events if isinstance(event, StepEvent)))


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    method: str
    task: str
    seed: int
    config: Config
    test: Mapping[str, Any]

    @property
    def folder(self) -> RunFolder:
        assert self.config.output_dir is not None
        return RunFolder(Path(self.config.output_dir))

    @property
    def outcome(self) -> Path:
        return self.folder.path / "outcome.json"

    @property
    def asked_file(self) -> Path:
        """Where it is kept what the study asked for when the cell was begun: beside its folder, and before that."""
        return self.folder.path.with_name(f"{self.folder.path.name}.asked.json")

    @property
    def asked(self) -> dict[str, Any]:
        """What the study asks for, but for where it is kept and how it is computed."""
        values = asdict(self.config)
        plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
        return {name: value for name, value in plain.items() if name not in NOT_ASKED}


@dataclass(frozen=True)
class Study:
    """What a TOML file asks for. Cells of one seed come before those of the next."""

    path: Path
    output: Path
    budget: Budget
    cells: tuple[Cell, ...]


class StopAtBudget(Callback):
    """Ends a run with the step that spends its budget."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def on_train_begin(self, trainer: MeZOTrainer) -> None:
        self.trainer = trainer
        self.spent = self.budget.spent(trainer.metrics.events)
        trainer.should_stop = self.spent >= self.budget.amount

    def on_step_end(self, event: StepEvent) -> None:
        self.spent += UNITS[self.budget.unit](event)
        self.trainer.should_stop = self.spent >= self.budget.amount


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_study(path: Path, output_dir: str | None = None) -> Study:
    """The study of a TOML file, every cell's settings checked.

    Raises:
        InputError: anything unknown, missing or wrong, with the section that it stands in.
    """
    values = toml_values(path)
    known = {"output_dir", "seeds", "budget", "settings", "tasks", "methods", "grid"}
    if unknown := sorted(set(values) - known):
        raise InputError(f"{path}: unknown {', '.join(unknown)}; a study has {', '.join(sorted(known))}")
    seeds = values.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise InputError(f"{path}: seeds must be a list of whole numbers, got {shown(seeds)}")
    methods = _methods(path, values)
    tasks = _sections(path, values, "tasks", default={"demo": {}})
    named = output_dir or values.get("output_dir") or f"output/{path.stem}"
    output = folder_of(named, "--output-dir" if output_dir else f"{path}: output_dir")
    settings = values.get("settings", {})
    if not isinstance(settings, dict):
        raise InputError(f"{path}: [settings] must be a section, got {shown(settings)}")
    for task, of_task in tasks.items():
        _check_test(f"{path}: [tasks.{task}]", of_task)
    for name in (*methods, *tasks):
        if "/" in name or name in (".", ".."):
            raise InputError(f"{path}: {shown(name)} is no name for a folder of runs")
    count = len(seeds) * len(tasks) * len(methods)
    if count > MOST_CELLS:
        raise InputError(f"{path}: seeds, tasks and methods make {count:,} runs; at most {MOST_CELLS:,} are allowed")
    cells = []
    for seed, (task, of_task), (method, of_method) in itertools.product(seeds, tasks.items(), methods.items()):
        merged = settings | {key: value for key, value in of_task.items() if key not in TASK_ONLY} | of_method
        if merged.pop("first_order", False):
            shared = {name for name in OF_DIRECTIONS if name not in of_method}
            merged = {name: value for name, value in merged.items() if name not in shared} | {"estimator": "backprop"}
        folder = output / method / task / f"seed-{seed}"
        where = f"{path}: [methods.{method}] on [tasks.{task}]"
        config = make_config(merged | {"seed": seed, "output_dir": str(folder)}, where=where)
        test = {key: of_task[key] for key in TASK_ONLY if key in of_task}
        cells.append(Cell(method, task, seed, config, test))
    return Study(path, output, _budget(path, values.get("budget")), tuple(cells))


def _methods(path: Path, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    if "grid" not in values:
        return _sections(path, values, "methods")
    if "methods" in values:
        raise InputError(f"{path}: give [methods] to compare or [grid] to sweep, not both")
    grid = values["grid"]
    if not isinstance(grid, dict) or not grid or not all(isinstance(v, list) and v for v in grid.values()):
        raise InputError(f"{path}: [grid] must give a list of values for each setting")
    if (count := math.prod(map(len, grid.values()))) > MOST_CELLS:
        raise InputError(f"{path}: [grid] has {count:,} points; at most {MOST_CELLS:,} are allowed")
    points = [dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values())]
    return {",".join(f"{name}={value}" for name, value in point.items()): point for point in points}


def _sections(path: Path, values: Mapping[str, Any], name: str, default: Any = None) -> dict[str, dict[str, Any]]:
    sections = values.get(name, default)
    if not isinstance(sections, dict) or not sections or not all(isinstance(v, dict) for v in sections.values()):
        raise InputError(f"{path}: give at least one section [{name}.NAME]")
    return sections


def _check_test(where: str, section: Mapping[str, Any]) -> None:
    """Refuse wrong values of what only the study knows of a task."""
    if (data := section.get("test_data")) is not None:
        path_of(data, f"{where}: test_data")
    if (count := section.get("test_samples")) is not None:
        whole_of(count, f"{where}: test_samples", 1, MANY)
    if (target := section.get("target_accuracy")) is not None and not (is_number(target) and 0 <= target <= 1):
        raise InputError(f"{where}: target_accuracy must be from 0 to 1, got {shown(target)}")


def _budget(path: Path, value: Any) -> Budget:
    if not (isinstance(value, dict) and len(value) == 1 and set(value) <= set(UNITS)):
        raise InputError(f"{path}: budget must be one of {', '.join(UNITS)} with an amount, got {shown(value)}")
    ((unit, amount),) = value.items()
    if not is_number(amount) or not 0 < amount < math.inf:
        raise InputError(f"{path}: budget: {unit} must be a number above 0, got {shown(amount)}")
    if amount > MOST_BUDGET:
        raise InputError(f"{path}: budget: {unit} must be at most {MOST_BUDGET:,}, got {shown(amount)}")
    return Budget(unit, float(amount))


# ---- running ---------------------------------------------------------------------------------------------------------


def train_cell(cell: Cell, budget: Budget) -> None:
    """Train a cell until it has had its budget; goes on where an earlier call or process stopped.

    Raises:
        InputError: the cell was begun with other settings than the study has now.
        TrainingError: the disk refused; the cell goes on when the study is run again.
    """
    reset_peak_memory()
    folder, stop = cell.folder, StopAtBudget(budget)
    resumable = folder.config.is_file() and folder.journal.is_file() and begins_a_run(folder.journal)
    if resumable:
        check_as_begun(cell)
        summed_up = read_json(folder.summary) is not None and folder.metrics.is_file()
        if summed_up and budget.spent(read_metrics(folder.metrics)) >= budget.amount:
            return
    try:
        if resumable:
            resume(
                folder.path, callbacks=[stop], trust_remote_code=cell.config.trust_remote_code,
                reward_funcs=cell.config.reward or None,
            )  # fmt: skip
        else:
            write_json(cell.asked_file, cell.asked)
            run(start_run(replace(cell.config, overwrite=folder.journal.is_file()), callbacks=[stop]))
    except DiskError as error:  # says nothing of the method
        named = f"{cell.method} on {cell.task}, seed {cell.seed}"
        raise DiskError(f"{named}: {error.__cause__}. Make room and run the study again: it goes on there") from error
    except TrainingError as error:  # diverged: a result, too
        logger.warning("%s on %s, seed %d: %s", cell.method, cell.task, cell.seed, error)


def check_as_begun(cell: Cell) -> None:
    """Refuse a cell whose settings have been edited in the study since it was begun.

    Raises:
        InputError: with the names of the settings.
    """
    begun = read_json(cell.asked_file)
    if begun is None or begun == cell.asked:
        return
    changed = sorted(name for name in begun.keys() | cell.asked.keys() if begun.get(name) != cell.asked.get(name))
    raise InputError(
        f"{cell.folder.path} was begun with other settings than the study has now: {', '.join(changed)}; put them "
        "back, name another --output-dir, or delete that folder"
    )


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is none that is whole."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a page, or for a terminal of any width."""
    return "".join("| " + " | ".join(line) + " |\n" for line in (heading, ["---"] * len(heading), *rows))
