"""What CONTRIBUTING.md adds works as it stands there: an estimator, a reward, and two engines, by one row each."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import test_estimator_contract as contract
from tests.conftest import REVIEWS
from tests.processes import run_to_end
from zotune.run.journal import read_journal
from zotune.zo import estimators
from zotune.zo.noise import GAUSSIAN

CODE, ROW, REWARD, PRIOR, REMOTE = re.findall(
    r"^```python\n(.*?)^```", (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(), re.M | re.S
)


@pytest.fixture
def row(monkeypatch) -> contract.Row:
    """The row that the page adds to the contract, for an estimator that it adds to the table."""
    monkeypatch.setattr(estimators, "ESTIMATORS", dict(estimators.ESTIMATORS))
    names = {**vars(estimators), "ROWS": {}, "Row": contract.Row}
    exec(CODE + ROW, names)
    assert names["ESTIMATORS"]["four_point"] is names["FourPoint"]
    return names["ROWS"]["four_point"]


def test_it_keeps_the_contract(row):
    contract.test_on_a_linear_function_slopes_are_exact_at_any_epsilon(row, 1.0, GAUSSIAN)
    contract.test_the_mean_over_directions_is_the_gradient(row)
    contract.test_the_same_losses_give_the_same_slopes_and_other_seeds_others(row)
    contract.test_scaling_the_loss_scales_the_slopes_or_leaves_them(row)
    contract.test_noise_in_the_losses_goes_into_the_slopes_as_stated(row)


def test_its_error_is_of_fourth_order(row):
    """On a quartic nothing is left but rounding, where two points leave eps^2; a sine shows the power."""
    exact = contract.exact_values(row, contract.rosenbrock_gradient(contract.THETA), contract.SEEDS)
    np.testing.assert_allclose(contract.values_of(row, 0.1, contract.rosenbrock, contract.SEEDS), exact, rtol=1e-9)
    exact = contract.exact_values(row, np.cos(contract.THETA), contract.SEEDS)
    large, small = (
        np.linalg.norm(contract.values_of(row, epsilon, lambda x: np.sin(x).sum(), contract.SEEDS) - exact)
        for epsilon in (1e-1, 1e-2)
    )
    assert large / small == pytest.approx(10**row.order, rel=0.1)


@pytest.mark.slow
def test_it_trains_resumes_and_replays_by_its_name(opt_dir, reviews_file, tmp_path):
    run = tmp_path / "run"
    settings = {
        "model": str(opt_dir), "train_data": str(reviews_file), "labels": ("terrible", "great"), "num_steps": 3,
        "batch_size": 2, "directions": 2, "estimator": "four_point", "output_dir": str(run),
    }  # fmt: skip
    script = (
        "import json, sys, zotune.zo.estimators as estimators\n"
        "exec(sys.argv[1], vars(estimators))\n"
        "from zotune import mezo_finetune, replay_run, resume\n"
        "mezo_finetune(**json.loads(sys.argv[2]))\n"
        "resume(sys.argv[3])\n"
        "replay_run(sys.argv[3], sys.argv[3] + '/replayed')\n"
    )
    done = run_to_end(CODE, json.dumps(settings), run, code=script)
    assert done.returncode == 0, done.stderr
    assert [len(entry.slopes) for entry in read_journal(run / "journal.jsonl")[1]] == [2, 2, 2]
    weights = "adapter_model.safetensors"
    assert (run / "replayed" / weights).read_bytes() == (run / "adapter" / weights).read_bytes()


# ---- a reward and engines: each in a process of its own, since a row is there before the settings are read


def train(code: str, **settings: Any) -> Path:
    """Run what the page adds, then train, resume and replay with it."""
    script = (
        "import json, sys\n"
        "exec(sys.argv[1], globals())\n"
        "from zotune import mezo_finetune, replay_run, resume\n"
        "settings = json.loads(sys.argv[2])\n"
        "mezo_finetune(**settings)\n"
        "resume(settings['output_dir'])\n"
        "replay_run(settings['output_dir'], settings['output_dir'] + '/replayed')\n"
    )
    done = run_to_end(code, json.dumps(settings), code=script)
    assert done.returncode == 0, done.stderr
    run = Path(settings["output_dir"])
    weights = "adapter_model.safetensors"
    assert (run / "replayed" / weights).read_bytes() == (run / "adapter" / weights).read_bytes()
    return run


@pytest.fixture
def settings(opt_dir, reviews_file, tmp_path) -> dict[str, Any]:
    return {
        "model": str(opt_dir), "train_data": str(reviews_file), "labels": ("terrible", "great"), "num_steps": 4,
        "batch_size": 4, "directions": 2, "tuning": "lora", "init_lora_weights": "kaiming", "num_threads": 1,
        "output_dir": str(tmp_path / "run"),
    }  # fmt: skip


@pytest.mark.slow
def test_the_reward_is_trained_on_by_its_name_and_counts_words(settings, tmp_path):
    data = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": review["text"], "completion": "a b c d"} for review in REVIEWS]
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    run = train(REWARD, **{**settings, "train_data": str(data), "labels": (), "objective": "brevity", "epsilon": 0.5})
    entries = read_journal(run / "journal.jsonl")[1]
    assert len(entries) == 4
    assert {entry.loss * 4 * 4 * 3 % 1 for entry in entries} == {0.0}  # whole words, over 4, of 3 probes and 4 examples
    assert any(slope.value for entry in entries for slope in entry.slopes)


@pytest.mark.slow
def test_the_reward_is_refused_where_the_engine_does_not_write(settings, tmp_path):
    code = (
        REWARD
        + PRIOR
        + "from zotune import InputError, mezo_finetune\nimport json, sys\n"
        + ("try: mezo_finetune(**json.loads(sys.argv[1]))\nexcept InputError as error: print(error)\n")
    )
    asked = {**settings, "labels": (), "objective": "brevity", "engine": "prior", "task": "lm"}
    done = run_to_end(json.dumps(asked), code=code)
    assert "--objective brevity: it only scores candidates" in done.stdout
    assert not Path(settings["output_dir"]).exists()


@pytest.mark.slow
def test_the_smallest_engine_learns_the_prior(settings):
    settings |= {"engine": "prior", "num_steps": 60, "optimizer": "sgd", "learning_rate": 0.5, "epsilon": 1e-3}
    always_great = Path(settings["output_dir"]).with_name("great.jsonl")
    always_great.write_text("".join(json.dumps({**review, "label": 1}) + "\n" for review in REVIEWS))
    run = train(PRIOR, **{**settings, "train_data": str(always_great)})
    summary = json.loads((run / "summary.json").read_text())
    assert summary["final"]["loss"] < 0.3 < 0.69 < summary["initial"]["loss"]


@pytest.mark.slow
def test_the_remote_engine_has_the_plain_engines_journal(settings, tmp_path):
    remote = train(REMOTE, **{**settings, "engine": "remote"})
    plain = train("", **{**settings, "engine": "plain", "output_dir": str(tmp_path / "plain")})
    entries = [read_journal(run / "journal.jsonl")[1] for run in (remote, plain)]
    assert entries[0] == entries[1]
