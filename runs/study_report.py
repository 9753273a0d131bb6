"""The tables of docs/results.md, from what runs/study.py kept.

python runs/study_report.py docs/results.md [--results docs/results.jsonl]
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from page import put
from study import METHODS, REFERENCE, Kept

from zotune.config.defaults import make_estimator
from zotune.config.reading import make_config
from zotune.run.plots import plot_comparison
from zotune.study.cells import markdown
from zotune.study.compare import HEADING, first_at, spread, table

# Without peak memory: some of the cells that are kept were measured with the memory of cells before them.
COLUMNS = [HEADING.index(name) for name in HEADING if not name.startswith("to target") and name != "peak MiB"]
# What the methods' papers say of them, on other models and tasks.
CLAIMS = {
    "fzoo 8": "3 points better with a third of the forward passes, mean of 11 tasks (arXiv 2506.09034)",
    "low-rank 16, muon (ZO-Muon)": "the same accuracy on SST-2 with 24.7 % of the queries (arXiv 2602.17155)",
    "low-rank (LOZO)": "better, and faster to converge (arXiv 2410.07698)",
    "hizoo 4": "8 times faster, and better, on SST-2 (arXiv 2402.15173)",
    "sparse (Sparse-MeZO)": "9 points better and 3.5 times faster on RTE (arXiv 2402.15751)",
}
Outcome = dict[str, Any]


def results(outcomes: Sequence[Outcome]) -> str:
    """Test accuracy and cost of every method, the best of each task first."""
    order = {id(row): row for row in table(outcomes)}
    rows = sorted(order.values(), key=lambda row: (row[0], -float(row[3].split()[0]) if row[3] != "-" else 0.0))
    return markdown([HEADING[i] for i in COLUMNS], [[row[i] for i in COLUMNS] for row in rows])


def rates(rows: Sequence[Outcome]) -> str:
    """The learning rates that were tried for each method, and the lowest loss with each."""
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
    """Forward passes that an example takes in a step without a cache: the probes of a first step. Backward counts
    for two; so does the lens's way back, which few tokens take."""
    method = dict(METHODS[outcome["method"]][1])
    if method.pop("first_order", False) or method.get("estimator") == "lens":
        return 3.0
    config = make_config({"estimator": "spsa", "optimizer": "sgd", "directions": 1, **method})
    return float(make_estimator(config).num_probes(config.directions or 1))


def to_accuracy(outcomes: Sequence[Outcome], reference: Sequence[Outcome]) -> str:
    """What each method spent until its held-out accuracy reached that with which the reference ended."""
    rows: list[tuple[str, ...]] = []
    for task, runs in _by_task(reference, REFERENCE).items():
        target = statistics.mean(map(dev_accuracy, runs))
        whole = {name: statistics.mean(run[name] for run in runs) for name in ("seconds", "tokens", "steps")}
        rows.append((
            task, f"{REFERENCE}, {whole['steps']:.0f} steps", f"{100 * target:.1f}", f"{len(runs)} of {len(runs)}",
            spread([run["seconds"] for run in runs], 0), "1", "1", "1", _tested(runs),
        ))  # fmt: skip
        groups = {f"{REFERENCE}, first there": runs}
        groups |= {method: _by_task(outcomes, method).get(task, []) for method in _methods(outcomes)}
        for name, own in groups.items():
            if not own:
                continue
            reached = [point for run in own if (point := first_at(run["evaluations"], target))]
            weights = {"seconds": 1.0, "tokens": 1.0, "steps": passes(own[0]) / 2}
            rows.append((
                task, name, f"{100 * target:.1f}", f"{len(reached)} of {len(own)}",
                spread([point["seconds"] for point in reached], 1),
                *(spread([whole[unit] / (w * point[unit]) for point in reached], 1) for unit, w in weights.items()),
                "-" if own is runs else _tested(own),
            ))  # fmt: skip
    heading = (
        "task", "method", "to held-out accuracy, %", "seeds that reached it", "seconds", "times fewer seconds",
        "times fewer tokens", "times fewer forward passes", "test accuracy at the end, %",
    )  # fmt: skip
    return markdown(heading, rows)


def at_equal_scope(outcomes: Sequence[Outcome]) -> str:
    """What the one-sided finalists spent until they reached the lowest held-out loss of MeZO in the same scope."""
    rows: list[tuple[str, ...]] = []
    for method in [name for name in _methods(outcomes) if "one-sided" in name]:
        other = "MeZO everywhere" if METHODS[method][1].get("scope") == "everywhere" else "MeZO"
        for task, own in _by_task(outcomes, method).items():
            base = _by_task(outcomes, other).get(task, [])
            if not base:
                continue
            lowest = [min(run["evaluations"], key=lambda point: point["loss"]) for run in base]
            steps = statistics.mean(point["steps"] for point in lowest)
            target = statistics.mean(point["loss"] for point in lowest)
            reached = [point for run in own if (point := _first_below(run, target))]
            of_ten = [point for run in own if (point := _first_below(_ten_evaluations(run), target))]
            weights = {"seconds": 1.0, "tokens": 1.0, "steps": passes(own[0]) / 2}
            rows.append((
                task, method, other, f"{target:.3f}", f"{len(reached)} of {len(own)}",
                *(
                    spread([statistics.mean(p[unit] for p in lowest) / (w * point[unit]) for point in reached], 1)
                    for unit, w in weights.items()
                ),
                spread([steps / (weights["steps"] * point["steps"]) for point in of_ten], 1),
                _tested(own), _tested(base),
            ))  # fmt: skip
    heading = (
        "task", "method", "compared with", "lowest held-out loss of that", "seeds that reached it",
        "times fewer seconds", "times fewer tokens", "times fewer forward passes",
        "times fewer forward passes, evaluated ten times", "test accuracy at the end, %",
        "test accuracy of the other, %",
    )  # fmt: skip
    return markdown(heading, rows)


def _ten_evaluations(outcome: Outcome) -> Outcome:
    """As if it had been evaluated ten times and before training, as most finalists were."""
    points = outcome["evaluations"]
    return {**outcome, "evaluations": points[:: max(1, (len(points) - 1) // 10)]}


def _methods(outcomes: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(outcome["method"] for outcome in outcomes))


def _tested(runs: Sequence[Outcome]) -> str:
    """Test accuracy of the adapters with the lowest held-out loss."""
    return spread([run["test"]["accuracy"] for run in runs], 1, scale=100)


def to_first_order(outcomes: Sequence[Outcome]) -> str:
    """Test accuracy beside backpropagation's in the same scope, and seconds to within 2 points of its best."""
    rows: list[tuple[str, ...]] = []
    for method in _methods(outcomes):
        setting = METHODS[method][1]
        if setting.get("first_order"):
            continue
        teacher = "backpropagation everywhere" if setting.get("scope") == "everywhere" else "backpropagation"
        means = []
        for task, theirs in _by_task(outcomes, teacher).items():
            ours = _by_task(outcomes, method).get(task, [])
            if not ours:
                continue
            means.append([100 * statistics.mean(run["test"]["accuracy"] for run in runs) for runs in (ours, theirs)])
            target = statistics.mean(map(dev_accuracy, theirs)) - 0.02
            here, there = (
                [p["seconds"] for run in runs if (p := first_at(run["evaluations"], target))] for runs in (ours, theirs)
            )
            ratio = f"{statistics.mean(here) / statistics.mean(there):.1f}" if here and there else "-"
            rows.append((
                task, method, _tested(ours), _tested(theirs), f"{means[-1][0] - means[-1][1]:+.1f}",
                f"{len(here)} of {len(ours)}", spread(here, 1), spread(there, 1), ratio,
            ))  # fmt: skip
        if means:
            mine, best = (statistics.mean(column) for column in zip(*means, strict=True))
            rows.append(("mean", method, f"{mine:.1f}", f"{best:.1f}", f"{mine - best:+.1f}", *"----"))
    heading = (
        "task", "method", "test accuracy, %", "backpropagation's test accuracy, %", "difference",
        "seeds within 2 points (held out)", "seconds to there", "backpropagation's seconds to there", "ratio",
    )  # fmt: skip
    return markdown(heading, rows)


def claims(outcomes: Sequence[Outcome]) -> str:
    """What papers claim of a method, beside its result against MeZO in the same scope here."""
    rows: list[tuple[str, ...]] = []
    for method, claim in CLAIMS.items():
        for task, ours in _by_task(outcomes, method).items():
            theirs = _by_task(outcomes, "MeZO").get(task, [])
            if not theirs:
                continue
            gain = statistics.mean(run["test"]["accuracy"] for run in ours) - statistics.mean(
                run["test"]["accuracy"] for run in theirs
            )
            amount = min(run["tokens"] for run in (*ours, *theirs))
            target = statistics.mean(min(point["loss"] for point in run["evaluations"]) for run in theirs)
            needed, base = (
                [passes(run) * point["steps"] for run in runs if (point := _first_below(run, target))]
                for runs in (ours, theirs)
            )
            rows.append((
                task, method, claim, f"{100 * gain:+.1f}", spread([_lowest_loss(run, amount) for run in ours], 3),
                spread([_lowest_loss(run, amount) for run in theirs], 3), f"{len(needed)} of {len(ours)}",
                f"{statistics.mean(base) / statistics.mean(needed):.1f}" if needed and base else "-",
            ))  # fmt: skip
    heading = (
        "task", "method", "published, against MeZO", "here: test accuracy less MeZO's at equal seconds, points",
        "held-out loss at equal tokens", "MeZO's held-out loss", "seeds that reached MeZO's lowest loss",
        "times fewer forward passes",
    )  # fmt: skip
    return markdown(heading, rows)


def _lowest_loss(outcome: Outcome, tokens: float) -> float | None:
    """Lowest held-out loss within that many tokens; None: there was only the evaluation before training."""
    points = [point["loss"] for point in outcome["evaluations"] if point["tokens"] <= tokens]
    return min(points) if len(points) > 1 else None


def _first_below(outcome: Outcome, loss: float) -> Mapping[str, Any] | None:
    """The first evaluation with at most that loss."""
    return next((point for point in outcome["evaluations"] if point["loss"] <= loss), None)


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
        "claims": claims(screen), "equal-scope": at_equal_scope(final),
    }  # fmt: skip
    for name, text in texts.items():
        print(text)
        put(options.page, name, text)
    if final:
        plot_comparison(final, options.page.parent)


if __name__ == "__main__":
    main()
