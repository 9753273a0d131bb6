"""The tables of docs/results.md, from what runs/study.py kept.

python runs/study_report.py docs/results.md [--results docs/results.jsonl]
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from page import put
from study import METHODS, REFERENCE, Kept

from zotune.compare import HEADING, first_at, table
from zotune.plots import plot_comparison
from zotune.study import markdown

# Peak memory is that of the process, which trains one cell after the other.
COLUMNS = [HEADING.index(name) for name in HEADING if not name.startswith("to target") and name != "peak MiB"]
Outcome = dict[str, Any]


def results(outcomes: Sequence[Outcome]) -> str:
    """Test accuracy and cost of every method, the best of each task first."""
    order = {id(row): row for row in table(outcomes)}
    rows = sorted(order.values(), key=lambda row: (row[0], -float(row[3].split()[0]) if row[3] != "-" else 0.0))
    return markdown([HEADING[i] for i in COLUMNS], [[row[i] for i in COLUMNS] for row in rows])


def rates(rows: Sequence[Outcome]) -> str:
    """What was tried of each method, and what came out."""
    lines = []
    for row in rows:
        tried = ", ".join(f"{rate}: {loss:.3f}" for rate, (loss, _) in row["loss and steps"].items())
        lines.append((row["method"], f"{row['learning_rate']:g}", tried))
    return markdown(
        ("method", "learning rate", "lowest held-out loss of each rate tried, the last ones with fewer steps"), lines
    )


def dev_accuracy(outcome: Outcome) -> float:
    """Held-out accuracy at the lowest held-out loss."""
    return float(min(outcome["evaluations"], key=lambda point: point["loss"])["accuracy"])


def _by_task(outcomes: Sequence[Outcome], method: str) -> dict[str, list[Outcome]]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome["method"] == method:
            groups.setdefault(outcome["task"], []).append(outcome)
    return groups


def passes(outcome: Outcome) -> float:
    """Forward passes an example and step would take without a cache: the probes of a step."""
    method = METHODS[outcome["method"]][1]
    directions = method.get("directions", 1)
    return float({"one_sided": directions + 1, "fzoo": directions + 1, "jvp": directions + 1}.get(
        method.get("estimator", "spsa"), 2 * directions
    ))  # fmt: skip


def to_accuracy(outcomes: Sequence[Outcome], reference: Sequence[Outcome]) -> str:
    """What each method spent until its held-out accuracy was the one the reference ended with."""
    rows = []
    methods = list(dict.fromkeys(outcome["method"] for outcome in outcomes))
    for task, runs in _by_task(reference, REFERENCE).items():
        target = statistics.mean(map(dev_accuracy, runs))
        whole = {name: statistics.mean(run[name] for run in runs) for name in ("seconds", "tokens", "steps")}
        first = [point for run in runs if (point := first_at(run["evaluations"], target))]
        rows.append((
            task, f"{REFERENCE}, {whole['steps']:.0f} steps", f"{100 * target:.1f}", f"{len(runs)} of {len(runs)}",
            f"{whole['seconds']:.0f}", "1", "1", "1", _tested(runs),
        ))  # fmt: skip
        if first:
            rows.append((*_row(task, f"{REFERENCE}, first there", target, first, len(runs), whole, 2.0), "-"))
        for method in methods:
            own = _by_task(outcomes, method).get(task, [])
            reached = [point for run in own if (point := first_at(run["evaluations"], target))]
            if reached:
                rows.append((*_row(task, method, target, reached, len(own), whole, passes(own[0])), _tested(own)))
            elif own:
                rows.append((task, method, f"{100 * target:.1f}", f"0 of {len(own)}", *"----", _tested(own)))
    heading = (
        "task", "method", "to held-out accuracy, %", "seeds that reached it", "seconds", "times fewer seconds",
        "times fewer tokens", "times fewer forward passes", "test accuracy at the end, %",
    )  # fmt: skip
    return markdown(heading, rows)


def _tested(runs: Sequence[Outcome]) -> str:
    """Mean test accuracy of the adapters with the lowest held-out loss."""
    return f"{100 * statistics.mean(run['test']['accuracy'] for run in runs):.1f}"


def _row(
    task: str, method: str, target: float, reached: Sequence[Any], count: int, whole: dict[str, float], passes: float
) -> tuple[str, ...]:
    def fewer(spent: Callable[[Any], float], of: float) -> str:
        mean = statistics.mean(map(spent, reached))
        return f"{of / mean:.1f}" if mean else "-"

    return (
        task, method, f"{100 * target:.1f}", f"{len(reached)} of {count}",
        f"{statistics.mean(point['seconds'] for point in reached):.1f}",
        fewer(lambda point: point["seconds"], whole["seconds"]), fewer(lambda point: point["tokens"], whole["tokens"]),
        fewer(lambda point: passes * point["steps"], 2 * whole["steps"]),
    )  # fmt: skip


def to_first_order(outcomes: Sequence[Outcome]) -> str:
    """Test accuracy beside backpropagation's in the same scope, and seconds to within 2 points of its best."""
    rows = []
    for method in dict.fromkeys(outcome["method"] for outcome in outcomes):
        setting = METHODS[method][1]
        if setting.get("first_order"):
            continue
        teacher = "backpropagation everywhere" if setting.get("scope") == "everywhere" else "backpropagation"
        for task, theirs in _by_task(outcomes, teacher).items():
            ours = _by_task(outcomes, method).get(task, [])
            if not ours:
                continue
            mine, best = (100 * statistics.mean(run["test"]["accuracy"] for run in runs) for runs in (ours, theirs))
            target = statistics.mean(map(dev_accuracy, theirs)) - 0.02
            there, here = (
                [p for run in runs if (p := first_at(run["evaluations"], target))] for runs in (theirs, ours)
            )
            seconds = [
                statistics.mean(point["seconds"] for point in points) if points else None for points in (here, there)
            ]
            ratio = f"{seconds[0] / seconds[1]:.1f}" if seconds[0] is not None and seconds[1] else "-"
            rows.append((
                task, method, f"{mine:.1f}", f"{best:.1f}", f"{mine - best:+.1f}", f"{len(here)} of {len(ours)}",
                *(f"{value:.1f}" if value is not None else "-" for value in seconds), ratio,
            ))  # fmt: skip
    heading = (
        "task", "method", "test accuracy, %", "backpropagation's", "difference", "seeds within 2 points (held out)",
        "seconds to there", "backpropagation's", "ratio",
    )  # fmt: skip
    return markdown(heading, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--results", type=Path, default=Path("docs/results.jsonl"))
    options = parser.parse_args()
    kept = Kept(options.results)
    screen, final, reference = (kept.rows(part) for part in ("screen", "final", "reference"))
    texts = {
        "rates": rates(kept.rows("tune")), "screen": results(screen), "final": results(final),
        "reference": to_accuracy(final, reference), "first-order": to_first_order(final),
    }  # fmt: skip
    for name, text in texts.items():
        print(text)
        put(options.page, name, text)
    if final:
        plot_comparison(final, options.page.parent)


if __name__ == "__main__":
    main()
