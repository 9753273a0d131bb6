"""Studies: equal budgets, finished cells kept over kill -9, sweeps by successive halving, first-order beside them."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import REVIEWS, TARGETS, make_model
from tests.processes import Process
from tests.test_train import StopAt
from zotune.adapter.forms import initial_theta
from zotune.adapter.spec import LoraSpec
from zotune.cli import main
from zotune.engine.memory import peak_resident_bytes
from zotune.engine.torch.plain import PlainEngine
from zotune.errors import DiskError, InputError
from zotune.finetune import make_trainer, mezo_finetune, resume
from zotune.replay import replay_run
from zotune.run.journal import Journal, read_journal
from zotune.run.metrics import StepEvent, read_metrics
from zotune.study.cells import Budget, read_study, train_cell
from zotune.study.compare import run_comparison, table
from zotune.study.sweep import run_sweep
from zotune.zo.draws import gaussian
from zotune.zo.objectives import cross_entropy, token_nll
from zotune.zo.protocol import Example, Probe

INVOCATION = (50, 51)


def write_study(path, opt_dir, reviews_file, text, budget="steps = 6"):
    path.write_text(f"""
output_dir = "{path.parent / "cells"}"
budget = {{ {budget} }}
[settings]
model = "{opt_dir}"
train_data = "{reviews_file}"
labels = ["terrible", "great"]
invocation = " It was"
batch_size = 4
eval_steps = 3
num_threads = 1
{text}
""")
    return path


TWO_METHODS = """
[tasks.reviews]
target_accuracy = 0.0
test_data = "REVIEWS"
[methods.mezo]
[methods.adam]
first_order = true
learning_rate = 1e-3
"""


@pytest.mark.slow
def test_every_cell_gets_its_budget_and_the_table_is_read_off_the_folders(tmp_path, opt_dir, reviews_file):
    text = "seeds = [0, 1]\n" + TWO_METHODS.replace("REVIEWS", str(reviews_file))
    head, _, rest = text.partition("\n")
    path = write_study(tmp_path / "study.toml", opt_dir, reviews_file, rest)
    path.write_text(head + "\n" + path.read_text())
    study = read_study(path)
    outcomes = list(run_comparison(study))
    assert [(outcome["method"], outcome["seed"]) for outcome in outcomes] == [
        ("mezo", 0),
        ("adam", 0),
        ("mezo", 1),
        ("adam", 1),
    ]
    for cell, outcome in zip(study.cells, outcomes, strict=True):
        steps = [event for event in read_metrics(cell.folder.metrics) if isinstance(event, StepEvent)]
        assert len(steps) == 6
        assert outcome == json.loads(cell.outcome.read_text())
        assert outcome["tokens"] == sum(event.tokens_computed for event in steps)
        assert outcome["steps_to_target"] == 0  # any accuracy will do, also that of the start
        assert outcome["evaluations"][-1]["steps"] == 6
        assert outcome["evaluations"][-1]["seconds"] == outcome["seconds"]
        assert outcome["test"]["num_examples"] == len(REVIEWS)
    rows = table(outcomes)
    assert [row[:3] for row in rows] == [("reviews", "mezo", "2"), ("reviews", "adam", "2")]
    assert all("±" in row[3] for row in rows)
    before = {cell.folder.metrics: cell.folder.metrics.stat().st_mtime_ns for cell in study.cells}
    assert len(list(run_comparison(read_study(path)))) == 4
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts peak memory anew on demand")
@pytest.mark.slow
def test_peak_memory_of_a_cell_is_not_that_of_what_ran_before(tmp_path, opt_dir, reviews_file):
    path = write_study(
        tmp_path / "study.toml", opt_dir, reviews_file, TWO_METHODS.replace("REVIEWS", str(reviews_file))
    )
    large = np.ones(2**26)
    before = peak_resident_bytes()
    del large
    cell = read_study(path).cells[0]
    train_cell(cell, Budget("steps", 2))
    assert json.loads(cell.folder.summary.read_text())["peak_memory_bytes"] < before - 2**28


@pytest.mark.slow
def test_a_study_killed_at_any_moment_goes_on_without_repeating_finished_cells(tmp_path, opt_dir, reviews_file):
    methods = "[tasks.reviews]\n" + "".join(f"[methods.m{n}]\nlearning_rate = {n}e-4\n" for n in (1, 2, 3))
    path = write_study(tmp_path / "study.toml", opt_dir, reviews_file, methods, budget="steps = 150")
    process = Process("compare", path)
    first, second = (tmp_path / "cells" / name / "reviews" / "seed-0" for name in ("m1", "m2"))
    deadline = time.monotonic() + 120
    while not (second / "journal.jsonl").exists() or (second / "journal.jsonl").read_bytes().count(b"\n") < 20:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    assert (first / "outcome.json").is_file()
    assert not (second / "outcome.json").exists()
    done, lines = (first / "journal.jsonl").stat().st_mtime_ns, (second / "journal.jsonl").read_bytes()
    main(["compare", str(path)])
    assert (first / "journal.jsonl").stat().st_mtime_ns == done
    whole = (second / "journal.jsonl").read_bytes()
    assert whole.startswith(lines[: lines.rindex(b"\n") + 1])
    assert len(read_journal(second / "journal.jsonl")[1]) == 150
    assert "| m3 | 1 |" in (tmp_path / "cells" / "table.md").read_text()


@pytest.mark.slow
def test_a_sweep_gives_more_to_what_does_better_and_computes_nothing_twice(tmp_path, opt_dir, reviews_file):
    mezo = 'estimator = "spsa"\noptimizer = "sgd"\ndirections = 1\nlr_scheduler_type = "constant"\n'
    mezo += 'tuning = "lora"\ninit_lora_weights = "kaiming"\n'
    grid = mezo + "[grid]\nlearning_rate = [1e-12, 3e-3, 1e-11]\n"
    path = write_study(tmp_path / "study.toml", opt_dir, reviews_file, grid + "[tasks.reviews]", budget="steps = 250")
    rows = run_sweep(read_study(path), keep=3)
    assert rows[0][2] == "learning_rate=0.003"
    steps = {row[2]: int(row[4]) for row in rows}
    assert steps["learning_rate=0.003"] == 3 * steps["learning_rate=1e-12"]  # 50 each, then 100 more for one
    assert steps["learning_rate=0.003"] == 150
    assert run_sweep(read_study(path), keep=3) == rows


@pytest.mark.slow
def test_a_cell_goes_on_to_a_larger_budget_as_if_it_had_had_it_at_once(tmp_path, opt_dir, reviews_file):
    text = "[tasks.reviews]\n[methods.a]\n[methods.b]\nlearning_rate = 4e-3"
    cells = read_study(write_study(tmp_path / "study.toml", opt_dir, reviews_file, text)).cells
    train_cell(cells[0], Budget("steps", 5))
    train_cell(cells[0], Budget("steps", 12))
    train_cell(cells[1], Budget("steps", 12))
    slopes = [[entry.slopes for entry in read_journal(cell.folder.journal)[1]] for cell in cells]
    assert len(slopes[0]) == 12
    assert slopes[0] == slopes[1]
    with pytest.raises(KeyboardInterrupt):
        resume(cells[0].folder.path, callbacks=[StopAt(15)])  # and a cell is an ordinary run
    assert len(read_journal(cells[0].folder.journal)[1]) == 15


BATCH = [
    Example((2, 3, 4, 5, 6), INVOCATION, ((60,), (61,)), 0),
    Example((2, 3, 4, 9), INVOCATION, ((60, 61), (60, 62), (63,)), 1),
]


@pytest.mark.parametrize("objective", [cross_entropy, token_nll])
@pytest.mark.parametrize("scope", ["activated", "everywhere"])
@pytest.mark.parametrize("kind", TARGETS)
def test_the_gradient_of_backpropagation_is_the_slope_of_the_plain_engines_loss(kind, scope, objective):
    model = make_model(kind)
    engine = PlainEngine(model, LoraSpec(4, 8.0, TARGETS[kind], INVOCATION if scope == "activated" else None))
    batch = BATCH if objective is cross_entropy else [Example(e.prompt, INVOCATION, e.candidates[:1]) for e in BATCH]
    theta = initial_theta(engine.tensor_shapes, 3)
    theta = {name: value + np.float32(0.1) * gaussian(11, name, value.shape) for name, value in theta.items()}
    loss, gradient = objective.gradient(engine.gradient, theta, batch)
    probes = [Probe(1, 0.0), Probe(1, 3e-4), Probe(1, -3e-4)]
    here, above, below = objective(engine, theta, probes, batch).values.mean(axis=1)
    assert loss == pytest.approx(here, rel=1e-6)
    slope = sum(float((values * gaussian(1, name, values.shape)).sum()) for name, values in gradient.items())
    # Truncation at this eps is below 1e-3; rounding of fp32 losses, 1e-6 over it, is what is left.
    assert slope == pytest.approx((above - below) / 6e-4, rel=1e-2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tasks.a]\n[methods.m]\nlearning_rat = 1.0", "learning_rat"),
        ("[tasks.a]\n[methods.m]\ndirections = 0", "--directions must be 1 or more"),
        ("[tasks.a]", "at least one section [methods.NAME]"),
        ("[tasks.a]\n[methods.m]\n[grid]\nlearning_rate = [1.0]", "not both"),
        ("[tasks.a]\n[grid]\nlearning_rate = 1.0", "a list of values"),
        ("[task.a]\n[methods.m]", "unknown task"),
    ],
)
def test_a_wrong_study_is_refused_before_anything_is_run(tmp_path, opt_dir, reviews_file, text, message):
    path = write_study(tmp_path / "study.toml", opt_dir, reviews_file, text)
    with pytest.raises(InputError, match="study") as error:
        read_study(path)
    assert message in str(error.value)
    with pytest.raises(SystemExit) as stop:
        main(["compare", str(path)])
    assert stop.value.code == 2
    assert not (tmp_path / "cells").exists()


@pytest.mark.parametrize("budget", ["hours = 1", "steps = 0", "steps = true", "steps = 1, tokens = 1"])
def test_a_wrong_budget_is_refused(tmp_path, opt_dir, reviews_file, budget):
    with pytest.raises(InputError, match="budget"):
        read_study(write_study(tmp_path / "study.toml", opt_dir, reviews_file, "[tasks.a]\n[methods.m]", budget))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tuning": "full"}, "--estimator backprop does not go with --tuning full"),
        ({"directions": 4}, "--directions has no effect with --estimator backprop"),
        ({"noise": "sphere"}, "--noise has no effect with --estimator backprop"),
    ],
)
def test_what_backpropagation_cannot_train_is_refused_before_there_is_a_run_folder(
    tmp_path, opt_dir, settings, message
):
    run = tmp_path / "run"
    new: dict[str, Any] = {"labels": ["terrible", "great"], "invocation": " It was", "output_dir": str(run)}
    with pytest.raises(InputError, match=message):
        make_trainer(str(opt_dir), REVIEWS, **new, estimator="backprop", **settings)
    assert not run.exists()


def test_a_run_that_kept_no_journal_is_neither_resumed_nor_replayed(tmp_path, opt_dir, reviews_file):
    """As runs of backpropagation did not before it was an estimator: only their metrics tell of steps."""
    run = tmp_path / "run"
    new: dict[str, Any] = {"labels": ["terrible", "great"], "invocation": " It was", "output_dir": str(run)}
    mezo_finetune(str(opt_dir), str(reviews_file), **new, num_steps=3, num_threads=1)
    first = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)[0]
    (run / "journal.jsonl").write_bytes(first)
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for attempt in (lambda: resume(run), lambda: replay_run(run, tmp_path / "replayed")):
        with pytest.raises(InputError, match=r"tells of 3 steps and journal.jsonl of 0"):
            attempt()
    assert kept == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert not (tmp_path / "replayed").exists()


@pytest.mark.slow
def test_a_full_disk_is_no_outcome_and_an_edited_cell_is_refused(tmp_path, opt_dir, reviews_file, monkeypatch):
    text = "[methods.mezo]\nlearning_rate = 1e-3\n"
    study = read_study(write_study(tmp_path / "study.toml", opt_dir, reviews_file, text, "steps = 3"))
    (cell,) = study.cells
    real, count = Journal.append, 0

    def append(journal, entry):
        nonlocal count
        count += 1
        if count == 2:
            raise OSError(28, "No space left on device", "journal.jsonl")
        real(journal, entry)

    monkeypatch.setattr(Journal, "append", append)
    with pytest.raises(DiskError, match="run the study again"):
        list(run_comparison(study))
    assert not cell.outcome.exists()
    (outcome,) = run_comparison(study)
    assert outcome["steps"] == 3
    cell.outcome.write_text('{"torn')
    cell.folder.summary.write_text("")
    (again,) = run_comparison(study)
    assert {**again, "peak_memory_bytes": 0} == {**outcome, "peak_memory_bytes": 0}
    edited = write_study(tmp_path / "study.toml", opt_dir, reviews_file, text.replace("1e-3", "1e-2"), "steps = 3")
    with pytest.raises(InputError, match="begun with other settings than the study has now: learning_rate"):
        list(run_comparison(read_study(edited)))
