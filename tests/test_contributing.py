"""The estimator of CONTRIBUTING.md is added as it says, keeps the contract, and trains by its name."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import test_estimator_contract as contract
from zotune.run.journal import read_journal
from zotune.zo import estimators
from zotune.zo.noise import GAUSSIAN

CODE, ROW = re.findall(
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
    subprocess.run(
        [sys.executable, "-c", script, CODE, json.dumps(settings), str(run)],
        check=True,
        capture_output=True,
    )
    assert [len(entry.slopes) for entry in read_journal(run / "journal.jsonl")[1]] == [2, 2, 2]
    weights = "adapter_model.safetensors"
    assert (run / "replayed" / weights).read_bytes() == (run / "adapter" / weights).read_bytes()
