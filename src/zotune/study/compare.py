"""A comparison: every cell of a study at the same budget, and a table with the spread over seeds."""

import logging
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from zotune.inference import evaluate
from zotune.run.metrics import EvalEvent, StepEvent, best_of, read_metrics, write_json
from zotune.study.cells import Cell, Study, check_as_begun, read_json, train_cell

logger = logging.getLogger("zotune")


def run_comparison(study: Study) -> Iterator[dict[str, Any]]:
    """Run every cell that is not finished; gives the outcome of each when it is there."""
    for cell in study.cells:
        outcome = read_json(cell.outcome)
        asked = {"budget": {study.budget.unit: study.budget.amount}, "test": dict(cell.test)}
        check_as_begun(cell)
        if outcome is None or outcome.get("asked", asked) != asked:
            logger.info("%s on %s, seed %d", cell.method, cell.task, cell.seed)
            train_cell(cell, study.budget)
            outcome = {**_outcome(cell), "asked": asked}
            write_json(cell.outcome, outcome)
        yield outcome


def _outcome(cell: Cell) -> dict[str, Any]:
    """What a cell came to, from its metrics and the evaluation of its best adapter on test data."""
    events = read_metrics(cell.folder.metrics)
    evals = [event for event in events if isinstance(event, EvalEvent)]
    best = best_of(evals) if evals else None
    summary = read_json(cell.folder.summary) or {}
    test = None
    if "test_data" in cell.test and best is not None:
        found = evaluate(
            cell.test["test_data"], adapter=cell.folder.best, max_eval_samples=cell.test.get("test_samples"),
            trust_remote_code=cell.config.trust_remote_code, reward_funcs=cell.config.reward or None,
        )  # fmt: skip
        test = {"accuracy": found.accuracy, "loss": found.loss, "num_examples": found.num_examples}
    spent, points = _spent(events)
    target = cell.test.get("target_accuracy")
    reached = None if target is None else first_at(points, target)
    return {
        "method": cell.method, "task": cell.task, "seed": cell.seed,
        "test": test, "eval": best.metrics if best else None, **spent,
        "peak_memory_bytes": summary.get("peak_memory_bytes"), "target_accuracy": target,
        **{f"{name}_to_target": None if reached is None else reached[name] for name in ("steps", "tokens", "seconds")},
        "evaluations": points,
    }  # fmt: skip


def _spent(events: Sequence[StepEvent | EvalEvent]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What all steps took together, and the evaluations with what had been spent before each."""
    spent: dict[str, Any] = {"steps": 0, "tokens": 0, "forward_passes": 0, "seconds": 0.0}
    points = []
    for event in events:
        if isinstance(event, EvalEvent):
            points.append({**spent, "accuracy": event.accuracy, "loss": event.loss})
        else:
            spent["steps"] += 1
            spent["tokens"] += event.tokens_computed
            spent["forward_passes"] += event.forward_passes
            spent["seconds"] += event.step_time_s
    return spent, points


def first_at(evaluations: Sequence[Mapping[str, Any]], accuracy: float) -> Mapping[str, Any] | None:
    """The first evaluation of an outcome with at least that accuracy."""
    return next((point for point in evaluations if (point["accuracy"] or 0.0) >= accuracy), None)


HEADING = (
    "task", "method", "seeds", "accuracy, %", "loss", "steps", "million tokens", "seconds", "to target: million tokens",
    "to target: seconds", "peak MiB",
)  # fmt: skip


def table(outcomes: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each task and method: mean and standard deviation over the seeds."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome["task"], outcome["method"]), []).append(outcome)
    rows: list[tuple[str, ...]] = []
    for (task, method), group in sorted(groups.items(), key=lambda item: item[0][0]):
        finals = [outcome["test"] or outcome["eval"] or {} for outcome in group]
        rows.append((
            task, method, str(len(group)),
            spread([final.get("accuracy") for final in finals], 1, scale=100),
            spread([final.get("loss") for final in finals], 3),
            spread([outcome["steps"] for outcome in group], 0),
            spread([outcome["tokens"] for outcome in group], 2, scale=1e-6),
            spread([outcome["seconds"] for outcome in group], 1),
            spread([outcome["tokens_to_target"] for outcome in group], 2, scale=1e-6),
            spread([outcome["seconds_to_target"] for outcome in group], 1),
            spread([outcome["peak_memory_bytes"] for outcome in group], 0, scale=2**-20),
        ))  # fmt: skip
    return rows


def spread(values: Sequence[float | None], digits: int, scale: float = 1.0) -> str:
    """Mean and standard deviation of those that are there, and how many these are where some are not."""
    known = [value * scale for value in values if value is not None]
    if not known:
        return "-"
    text = f"{statistics.mean(known):.{digits}f}"
    if len(known) > 1:
        text += f" ± {statistics.stdev(known):.{digits}f}"
    return text + (f" ({len(known)} of {len(values)})" if len(known) < len(values) else "")
