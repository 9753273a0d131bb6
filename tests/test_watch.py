"""Losses that are no numbers end what asked for them, and training that goes wrong says so, with what helps."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import REVIEWS, make_model, make_tokenizer
from tests.processes import run_to_end
from zotune import Callback, InputError, TrainingError, evaluate, make_trainer, mezo_finetune, predict, resume
from zotune.cli import main
from zotune.run.metrics import EvalEvent, MetricsFile, best_of
from zotune.run.watch import Watch, is_worse, remedy, step_length
from zotune.study.cells import read_study
from zotune.study.sweep import run_sweep
from zotune.zo.estimators import Estimate
from zotune.zo.updates import Slope, Slopes

COMPLETIONS = [{"prompt": review["text"], "completion": " said my sister"} for review in REVIEWS]


def saved(model: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose numbers are too large for half precision, and for that alone."""
    model: Any = make_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight *= 300
            layer.mlp.gate_proj.weight *= 300
            layer.mlp.down_proj.weight /= 90_000
    return saved(model, tmp_path_factory.mktemp("models") / "overflowing")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model one of whose weights is no number."""
    model: Any = make_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] = math.nan
    return saved(model, tmp_path_factory.mktemp("models") / "damaged")


@pytest.fixture
def short(model_dirs, tmp_path) -> dict[str, Any]:
    return {
        "model": model_dirs["opt"], "train_data": REVIEWS, "task": "demo", "num_steps": 4, "batch_size": 4,
        "eval_steps": 2, "lr_scheduler_type": "constant", "num_threads": 1, "output_dir": tmp_path / "run",
    }  # fmt: skip


def test_half_precision_that_overflows_is_named_wherever_it_shows(overflowing, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    half = {"model": overflowing, "dtype": "float16", "num_threads": 1}
    remedy = "--dtype bfloat16 or float32"
    assert math.isfinite(evaluate(REVIEWS, task="demo", model=overflowing, num_threads=1).loss)
    with pytest.raises(InputError, match=remedy):
        evaluate(REVIEWS, task="demo", **half)
    with pytest.raises(InputError, match=remedy):
        predict(REVIEWS, task="demo", **half)
    for temperature in (0.0, 1.0):
        with pytest.raises(InputError, match=remedy):
            predict(COMPLETIONS, task="completion", max_new_tokens=2, temperature=temperature, **half)
    run = {"train_data": REVIEWS, "task": "demo", "num_steps": 2, "batch_size": 2, **half}
    with pytest.raises(InputError, match=f"the inputs of .* are no numbers: .*{remedy}"):
        mezo_finetune(**run, output_dir="eva")
    assert not Path("eva").exists()
    with pytest.raises(TrainingError, match=rf"nan after 0 steps: .*{remedy}\. The run is kept up to step 0"):
        mezo_finetune(**run, init_lora_weights="kaiming", output_dir="run")
    Path("data.jsonl").write_text("".join(json.dumps(review) + "\n" for review in REVIEWS))
    shared = ["--model", overflowing, "--dtype", "float16", "--task", "demo", "--train-data", "data.jsonl"]
    for command, code in (("analyze", 2), ("profile", 2)):
        with pytest.raises(SystemExit) as stop:
            main([command, *shared, "--batch-size", "2", "--output-dir", command, "--num-threads", "1"])
        assert stop.value.code == code
        assert remedy in capsys.readouterr().err


def test_weights_that_are_no_numbers_are_named_before_anything_was_trained(damaged, short):
    with pytest.raises(InputError, match="the weights of --model give it before any training"):
        evaluate(REVIEWS, task="demo", model=damaged, num_threads=1)
    with pytest.raises(InputError, match="the weights of --model"):
        predict(COMPLETIONS, task="completion", model=damaged, max_new_tokens=2, num_threads=1)
    with pytest.raises(TrainingError, match="the weights of --model give it before any training"):
        mezo_finetune(**{**short, "model": damaged}, init_lora_weights="kaiming")


def test_theta_that_has_diverged_asks_for_a_lower_rate(short):
    with pytest.raises(TrainingError, match=r"theta has diverged; lower --learning-rate \(its highest was 10000\)"):
        mezo_finetune(**short, tuning="full", learning_rate=1e4)


def test_slopes_that_are_zero_ask_for_a_lower_rate_where_the_loss_has_grown(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.append(EvalEvent(0, "eval", None, 1.0, 1, 0.0))
    flat = Slopes((Slope(1, 0.0),))
    for loss, advice in ((100.0, "from 1.0000 to 100.0000: lower --learning-rate"), (1.0, "raise --epsilon")):
        watch = Watch(tmp_path, metrics, lambda step: 0.5, 1e-2, "float32", "--batch-size")
        for step in range(9):
            watch.check(step, Estimate(loss, flat))
        with pytest.raises(TrainingError, match=advice):
            watch.check(9, Estimate(loss, flat))
    metrics.close()


@pytest.mark.parametrize("rate", [1.0, 100.0, 1e4])
def test_a_rate_that_leaves_the_probes_far_behind_is_warned_of_once(rate, short, caplog):
    mezo_finetune(**short, learning_rate=rate, tuning="lora_fa")  # of A and B nothing is left after one such step
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert [f"--learning-rate {rate:g} is likely too high" in text for text in warnings] == [True]


def test_a_patience_that_is_longer_than_the_run_is_warned_of(short, caplog):
    for patience, is_said in ((1, False), (2, True)):  # evaluations after 2 and 4 of 4 steps
        caplog.clear()
        folder = short["output_dir"] / str(patience)
        make_trainer(**{**short, "output_dir": folder, "early_stopping_patience": patience}).close()
        assert ("--early-stopping-patience 2 has no effect" in caplog.text) == is_said


def test_a_usual_rate_is_not_warned_of(short, caplog):
    mezo_finetune(**short, learning_rate=1e-4)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_an_end_that_is_worse_than_the_beginning_is_said(short, capsys, reviews_file, tmp_path):
    words = ["train", "--train-data", str(reviews_file), "--learning-rate", "30", "--tuning", "lora"]
    names = ("model", "task", "num_steps", "batch_size", "eval_steps", "lr_scheduler_type", "num_threads", "output_dir")
    for name in names:
        words += [f"--{name}", str(short[name])]
    main(words)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["final"]["loss"] > summary["initial"]["loss"]
    assert "loss" in summary["worse_than_initial"]
    assert "on held-out data got worse" in " ".join(capsys.readouterr().out.split())


def test_a_loss_that_is_no_number_is_never_the_best():
    losses = (math.nan, 2.0, 1.0, math.nan)
    evaluations = [EvalEvent(step, "eval", None, loss, 1, 0.0) for step, loss in enumerate(losses)]
    assert best_of(evaluations).step == 2
    assert best_of(evaluations[::-1]).step == 2


def test_a_sweep_puts_what_is_no_number_last(overflowing, tmp_path, reviews_file):
    path = tmp_path / "study.toml"
    path.write_text(
        f"output_dir = '{tmp_path}/cells'\nbudget = {{ steps = 6 }}\n"
        f"[settings]\nmodel = '{overflowing}'\nbatch_size = 2\n"
        f"train_data = '{reviews_file}'\ntask = 'demo'\nnum_threads = 1\neval_steps = 1\n"
        "init_lora_weights = 'kaiming'\ntuning = 'lora'\n"
        "[grid]\ndtype = ['float16', 'float32', 'bfloat16']\n"
    )
    rows = run_sweep(read_study(path))
    assert rows[-1][2:4] == ("dtype=float16", "inf")


def test_what_helps_goes_by_the_precision_and_by_what_was_trained():
    assert "--dtype" not in remedy("float32", 1.0)
    assert "--dtype float32" in remedy("bfloat16", 1.0)
    assert "--learning-rate" not in remedy("float16")
    assert not is_worse(1.04, 1.0)
    assert is_worse(1.06, 1.0)
    assert is_worse(-0.9, -1.0)
    before = {"a": np.zeros(3, np.float32), "b": np.zeros(1, np.float32)}
    assert step_length(before, {"a": np.full(3, 2.0, np.float32), "b": np.full(1, 2.0, np.float32)}) == 2.0


def test_an_error_of_a_callback_is_its_own(short):
    class Upload(Callback):
        def on_step_end(self, event) -> None:
            raise OSError(28, "No space left on device", "somewhere else")

    with pytest.raises(OSError, match="somewhere else"):
        mezo_finetune(**short, callbacks=[Upload()])


def test_a_model_that_was_given_is_as_it_was_afterwards(short):
    model = make_model("opt").train()
    mezo_finetune(**{**short, "model": model}, tokenizer=make_tokenizer())
    assert all(module.training for module in model.modules())


@pytest.mark.slow
def test_a_run_folder_may_be_called_anything(short, tmp_path, capsys, monkeypatch, reviews_file):
    monkeypatch.chdir(tmp_path)
    words = ["train", "--model", str(short["model"]), "--train-data", str(reviews_file), "--task", "demo"]
    words += ["--num-steps", "1", "--batch-size", "2", "--num-threads", "1", "--tuning", "lora"]
    for name in ("run[/bold]", ":smile:", "run$x_{$"):
        main([*words, "--output-dir", name])
        assert f"run folder: {name} (adapter: {name}/adapter)" in capsys.readouterr().out
        main(["plot", name])
        main(["evaluate", "--adapter", f"{name}/adapter", "--output-file", f"{name}/found.json"])
        capsys.readouterr()


LIMITED = """
import resource, sys
import torch
from zotune import TrainingError, make_trainer
torch.set_num_threads(1)
model, data = sys.argv[1:]
settings = {"task": "demo", "estimator": "one_sided", "num_steps": 4, "batch_size": 4, "num_threads": 1}
with make_trainer(model, data, **settings, output_dir="run") as trainer:
    trainer.train_step()
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**20, size + 2**20))
    def hungry(*arguments):
        torch.empty(2**40)
    trainer.objective = hungry
    try:
        trainer.train()
    except TrainingError as error:
        print(error)
"""


@pytest.mark.slow
def test_memory_that_is_refused_ends_a_run_that_goes_on_later(short, tmp_path, reviews_file):
    done = run_to_end(str(short["model"]), str(reviews_file), code=LIMITED, cwd=tmp_path)
    assert "out of memory after step 1" in done.stdout, done.stderr
    assert "--batch-size (now 4)" in done.stdout
    assert "kept up to step 1" in done.stdout
    assert resume(tmp_path / "run").summary["steps"] == 4
