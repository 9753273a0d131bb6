"""--report-to: what a tracker has is what the run folder has, and what is not there is said in a sentence."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REVIEWS
from zotune import mezo_finetune, resume
from zotune.cli import main
from zotune.config.reading import make_config
from zotune.errors import InputError
from zotune.run import reporting
from zotune.run.metrics import EvalEvent, StepEvent, read_metrics
from zotune.run.trackers import TRACKERS, Reported, Tracker

SETTINGS: dict[str, Any] = {"batch_size": 2, "eval_steps": 2, "num_threads": 1}
TASK: dict[str, Any] = {"labels": ("terrible", "great"), "invocation": " It was"}


def brevity(completions: list[str], **_: Any) -> list[float]:
    return [-len(text) / 100 for text in completions]


@pytest.fixture
def events(tmp_path: Path) -> Any:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read() -> EventAccumulator:
        found = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
        found.Reload()
        return found

    return read


@pytest.mark.slow
def test_tensorboard_has_the_numbers_of_the_run_once_also_after_a_resume(opt_dir, tmp_path, events):
    given = {**SETTINGS, **TASK, "estimator": "one_sided", "report_to": ("tensorboard",)}
    mezo_finetune(opt_dir, REVIEWS, num_steps=4, output_dir=str(tmp_path / "run"), **given)
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace("num_steps = 4", "num_steps = 6"))
    resume(tmp_path / "run")
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    steps = [event for event in metrics if isinstance(event, StepEvent)]
    evaluations = [event for event in metrics if isinstance(event, EvalEvent)]
    found = events()
    losses = [(scalar.step, scalar.value) for scalar in found.Scalars("train/loss")]
    assert losses == [(event.step, pytest.approx(event.loss, rel=1e-6)) for event in steps]  # stored in float32
    accuracies = [(scalar.step, scalar.value) for scalar in found.Scalars("eval/accuracy")]
    assert accuracies == [(event.step, pytest.approx(event.accuracy)) for event in evaluations]
    assert len(steps) == 6
    tags = {"train/learning_rate", "train/slope_size", "train/tokens_per_second", "eval/loss", "eval/macro_f1"}
    assert tags <= set(found.Tags()["scalars"])


@pytest.mark.slow
def test_what_the_model_wrote_is_there_to_read(opt_dir, tmp_path, events):
    prompts = [{"prompt": review["text"]} for review in REVIEWS[:6]]
    mezo_finetune(
        opt_dir, prompts, reward_funcs=brevity, num_steps=2, max_new_tokens=4, output_dir=str(tmp_path / "run"),
        report_to=("tensorboard",), directions=2, **SETTINGS,
    )  # fmt: skip
    found = events()
    (last,) = (event for event in found.Tensors("samples/text_summary") if event.step == 2)
    text = last.tensor_proto.string_val[0].decode()
    sample = json.loads((tmp_path / "run" / "samples.jsonl").read_bytes().splitlines()[-1])
    assert f"| {sample['reward']:.4g} | {sample['prompt']} |" in text
    assert {"train/reward", "eval/reward"} <= set(found.Tags()["scalars"])


def test_a_package_that_is_not_there_is_named_before_anything_is_made(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in TRACKERS else find(name))
    for name in TRACKERS:
        with pytest.raises(SystemExit) as stop:
            main(["train", "--report-to", name, "--output-dir", str(tmp_path / "run")])
        assert stop.value.code == 2
        assert f"--report-to {name}: the package {name} is not installed; pip install {name}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert make_config({"report_to": ("wandb",)}).report_to == ("wandb",)  # of a run on another machine
    with pytest.raises(InputError, match="there is no 'neptune'"):
        make_config({"report_to": ("neptune",)})


class Broken(Tracker):
    """Fails at a step, as one whose server goes away."""

    package = "tomllib"
    name: str
    told: list[int]

    def __init__(self, run: Reported) -> None:
        type(self).name, type(self).told = run.name, []

    def log(self, values: Any, step: int) -> None:
        if step == 2:
            raise ConnectionError("the server is gone")
        self.told.append(step)

    def log_text(self, name: str, text: str, step: int) -> None: ...

    def close(self) -> None: ...


class Refusing(Broken):
    def __init__(self, run: Reported) -> None:
        raise PermissionError("nobody is logged in")


def test_a_tracker_that_fails_does_not_end_a_run_and_one_that_cannot_start_does(opt_dir, tmp_path, monkeypatch, caplog):
    given: dict[str, Any] = {**SETTINGS, **TASK, "estimator": "one_sided", "num_steps": 3}
    monkeypatch.setitem(reporting.TRACKERS, "broken", Broken)
    result = mezo_finetune(opt_dir, REVIEWS, output_dir=str(tmp_path / "run"), report_to=("broken",), **given)
    assert result.summary["steps"] == 3
    assert Broken.name == "run"
    assert Broken.told == [0, 1]
    assert caplog.text.count("the server is gone; nothing more is reported to it") == 1
    named: dict[str, Any] = {**given, "run_name": "mine", "num_steps": 1}
    mezo_finetune(opt_dir, REVIEWS, output_dir=str(tmp_path / "other"), report_to=("broken",), **named)
    assert Broken.name == "mine"
    monkeypatch.setitem(reporting.TRACKERS, "refusing", Refusing)
    with pytest.raises(InputError, match="nobody is logged in"):
        mezo_finetune(opt_dir, REVIEWS, output_dir=str(tmp_path / "no"), report_to=("refusing",), **given)
