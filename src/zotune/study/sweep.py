"""A search over settings by successive halving (Jamieson and Talwalkar, 2016, arXiv 1502.07943).

All points of a study's grid get a little training, the best third of them more, and so on, in the same run folders:
what a point has had is never computed again. The study's budget is for all of them together.
"""

import logging
import math

from zotune.run.metrics import EvalEvent, best_of, read_metrics
from zotune.study.cells import Budget, Cell, Study, train_cell

logger = logging.getLogger("zotune")


HEADING = ("task", "seed", "point", "lowest loss", "steps")


def run_sweep(study: Study, keep: int = 3) -> list[tuple[str, ...]]:
    """Successive halving on each task and seed of the study: a row for each point, those that got furthest first.

    A point is judged by its lowest evaluation loss, one that diverged without any by infinity. Each round multiplies
    what a point has had by `keep`.
    """
    tasks = list(dict.fromkeys((cell.task, cell.seed) for cell in study.cells))
    rows: list[tuple[str, ...]] = []
    for task, seed in tasks:
        cells = [cell for cell in study.cells if (cell.task, cell.seed) == (task, seed)]
        amount = study.budget.amount / len(tasks) / _cost(len(cells), keep)
        ranked: list[Cell] = []
        while cells:
            for cell in cells:
                logger.info("%s on %s: up to %.4g %s", cell.method, task, amount, study.budget.unit)
                train_cell(cell, Budget(study.budget.unit, amount))
            judged = sorted(cells, key=_loss)
            cells, out = judged[: len(cells) // keep], judged[len(cells) // keep :]
            ranked = out + ranked
            amount *= keep
        rows += [(task, str(seed), cell.method, f"{_loss(cell):.4f}", str(_steps(cell))) for cell in ranked]
    return rows


def _loss(cell: Cell) -> float:
    """The lowest evaluation loss so far, after the start."""
    evals = [e for e in read_metrics(cell.folder.metrics) if isinstance(e, EvalEvent) and e.step > 0]
    lowest = best_of(evals).loss if evals else math.inf
    return lowest if math.isfinite(lowest) else math.inf


def _steps(cell: Cell) -> int:
    return max((event.step for event in read_metrics(cell.folder.metrics)), default=0)


def _cost(count: int, keep: int) -> float:
    """What all rounds cost, where the first gives every cell 1: later ones pay what is added."""
    cost, had, amount = 0.0, 0.0, 1.0
    while count:
        cost += count * (amount - had)
        had, amount, count = amount, amount * keep, count // keep
    return cost
