"""The installed command, end to end on a tiny model: every subcommand, its files and its output."""

import io
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REVIEWS
from zotune.adapter.peft_files import load_adapter
from zotune.cli import main
from zotune.config.reading import read_toml
from zotune.config.settings import Config
from zotune.data.tasks import TASKS

pytestmark = pytest.mark.slow
ZOTUNE = Path(sys.executable).with_name("zotune")
NUM_STEPS = 6
STEP_KEYS = {
    "event", "step", "loss", "learning_rate", "slopes", "step_time_s", "forward_passes", "tokens_computed",
    "tokens_reused",
}  # fmt: skip
EVAL_KEYS = {"event", "step", "split", "accuracy", "loss", "num_examples", "time_s", "macro_f1"}
SUMMARY_KEYS = {
    "model", "task", "initial", "best", "final", "steps", "train_time_s", "steps_per_s", "tokens_computed",
    "tokens_reused", "kv_reuse", "peak_memory_bytes", "seed", "versions", "exported", "worse_than_initial",
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run of the installed command, the data it had, and what it printed."""

    folder: Path
    model: Path
    eval_data: Path
    done: subprocess.CompletedProcess[str]

    @property
    def adapter(self) -> str:
        return str(self.folder / "adapter")

    @property
    def summary(self) -> dict:
        return json.loads((self.folder / "summary.json").read_text())

    @property
    def events(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


def zotune(*arguments: str, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ZOTUNE, *arguments], cwd=cwd, input=stdin, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def run(opt_dir: Path, reviews_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained from a TOML file and flags that win over it, in both spellings."""
    place = tmp_path_factory.mktemp("command")
    shutil.copytree(opt_dir, place / "model")
    (place / "eval.jsonl").write_text("".join(json.dumps(review) + "\n" for review in REVIEWS[:10]))
    (place / "run.toml").write_text(
        f'model = "model"\ntask = "demo"\ntrain-data = "{reviews_file}"\nnum_steps = 3\nseed = 5\nlearning-rate = 0.5\n'
        'lr_scheduler_type = "constant"\ndirections = 3\n'
    )
    done = zotune(
        "train", "run.toml", "--num-steps", str(NUM_STEPS), "--batch_size", "4", "--eval-steps", "3", "--eval_data",
        "eval.jsonl", "--output-dir", "run", "--num-threads", "1", cwd=place,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Run(place / "run", place / "model", place / "eval.jsonl", done)


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In a folder of its own; the command's logging ends with the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    logger = logging.getLogger("zotune")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


# ---- train


def test_a_run_folder_holds_everything_about_the_run(run):
    adapter = {"adapter_config.json", "adapter_model.safetensors", "zotune.json"}
    assert set(contents(run.folder)) == {
        "config.toml", "journal.jsonl", "start.safetensors", "metrics.jsonl", "summary.json",
        "plots/training.png", "plots/training.svg",
        *(f"{folder}/{name}" for folder in ("adapter", "best") for name in adapter),
    }  # fmt: skip


def test_flags_win_over_the_toml_file_and_the_file_over_defaults(run):
    config = read_toml(run.folder / "config.toml")
    assert (config.num_steps, config.batch_size, config.seed, config.learning_rate) == (NUM_STEPS, 4, 5, 0.5)
    assert (config.epsilon, config.lora_rank) == (Config().epsilon, Config().lora_rank)
    assert config.model == str(run.model)
    assert (config.scope, config.dtype, config.device) == ("activated", "float32", "cpu")  # what was left open


def test_metrics_hold_every_step_and_evaluation(run):
    steps = [event for event in run.events if event["event"] == "step"]
    evals = [event for event in run.events if event["event"] == "eval"]
    assert [event["step"] for event in steps] == list(range(1, NUM_STEPS + 1))
    assert [event["step"] for event in evals] == [0, 3, NUM_STEPS]
    assert all(set(event) == STEP_KEYS for event in steps)
    assert all(set(event) == EVAL_KEYS for event in evals)
    assert all(event["learning_rate"] == 0.5 and len(event["slopes"]) == 3 for event in steps)
    assert all(event["forward_passes"] > 0 and event["tokens_computed"] > 0 for event in steps)


def test_the_summary_is_read_off_the_metrics(run):
    summary, events = run.summary, run.events
    assert set(summary) == SUMMARY_KEYS
    steps = [event for event in events if event["event"] == "step"]
    evals = [event for event in events if event["event"] == "eval"]
    for name, event in (("initial", evals[0]), ("final", evals[-1]), ("best", min(evals, key=lambda e: e["loss"]))):
        assert summary[name] == {key: event[key] for key in ("accuracy", "loss", "num_examples", "macro_f1")}
    assert summary["final"]["num_examples"] == 10
    assert (summary["model"], summary["task"], summary["seed"]) == (str(run.model), "demo", 5)
    assert summary["steps"] == NUM_STEPS
    assert summary["tokens_computed"] == sum(event["tokens_computed"] for event in steps)
    computed, reused = summary["tokens_computed"], summary["tokens_reused"]
    assert summary["kv_reuse"] == reused / (computed + reused)
    assert summary["steps_per_s"] == pytest.approx(NUM_STEPS / sum(event["step_time_s"] for event in steps))
    assert summary["peak_memory_bytes"] > 2**20
    assert {"python", "zotune", "torch", "transformers"} <= set(summary["versions"])


def test_results_go_to_standard_output_and_progress_to_standard_error(run):
    assert "held-out accuracy" in run.done.stdout
    assert "run folder: run" in run.done.stdout
    assert "step 6/6" not in run.done.stdout
    assert "step 6/6" in run.done.stderr
    assert f"evaluation after {NUM_STEPS} steps: accuracy {run.summary['final']['accuracy']:.1%}" in run.done.stderr


def test_a_runs_config_trains_the_same_run_again(run, tmp_path):
    main(["train", str(run.folder / "config.toml"), "--output-dir", "again"])
    again = contents(tmp_path / "again")
    for name in ("journal.jsonl", "adapter/adapter_model.safetensors", "best/adapter_model.safetensors"):
        assert again[name] == contents(run.folder)[name]


def test_overwrite_replaces_a_run_and_nothing_else(run, tmp_path, capsys):
    arguments = ["train", str(run.folder / "config.toml"), "--num-steps", "1", "--output-dir", "again"]
    main(arguments)
    (tmp_path / "again" / "left").write_text("over")
    main([*arguments, "--overwrite", "--seed", "6"])
    assert read_toml(tmp_path / "again" / "config.toml").seed == 6
    assert not (tmp_path / "again" / "left").exists()


def test_a_run_that_diverges_ends_with_exit_code_1_and_is_kept(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([
            "train", "--model", str(run.model), "--train-data", str(run.eval_data), "--task", "demo",
            "--tuning", "full", "--learning-rate", "1e4", "--batch-size", "2", "--num-threads", "1",
            "--output-dir", "wild",
        ])  # fmt: skip
    assert stop.value.code == 1
    *_, message = capsys.readouterr().err.splitlines()
    assert message.startswith("zotune: ")
    assert "--learning-rate" in message
    assert (tmp_path / "wild" / "journal.jsonl").is_file()


# ---- evaluate and predict


def test_an_adapter_alone_is_evaluated_as_in_its_run(run, capsys):
    main(["evaluate", "--adapter", run.adapter, "--eval-data", str(run.eval_data), "--output-file", "metrics.json"])
    metrics = json.loads(Path("metrics.json").read_text())
    final = run.summary["final"]
    assert {key: metrics[key] for key in ("accuracy", "num_examples")} == {
        key: final[key] for key in ("accuracy", "num_examples")
    }
    assert metrics["loss"] == pytest.approx(final["loss"], rel=1e-6)
    assert len(metrics["predictions"]) == 10
    assert f"{final['accuracy']:.1%}" in capsys.readouterr().out


def test_evaluation_without_data_takes_those_of_the_run(run, capsys):
    config, final = str(run.folder / "config.toml"), run.summary["final"]
    main(["evaluate", "--adapter", run.adapter, "--output-file", "given.json"])
    assert json.loads(Path("given.json").read_text())["loss"] == pytest.approx(final["loss"], rel=1e-6)
    shutil.copytree(run.folder, "own")  # as of a run that trained on the data of its task
    lines = Path(config).read_text().splitlines(keepends=True)
    Path("own/config.toml").write_text("".join(line for line in lines if "train_data" not in line))
    main(["evaluate", "--adapter", "own/adapter", "--output-file", "own.json"])
    assert json.loads(Path("own.json").read_text())["loss"] == pytest.approx(final["loss"], rel=1e-6)
    Path("held_out.toml").write_text("".join(line for line in lines if "eval_data" not in line))
    main(["train", "held_out.toml", "--output-dir", "held_out"])
    main(["evaluate", "--adapter", "held_out/adapter", "--output-file", "held_out.json"])
    metrics = json.loads(Path("held_out.json").read_text())
    final = json.loads(Path("held_out/summary.json").read_text())["final"]
    assert (metrics["num_examples"], metrics["accuracy"]) == (4, final["accuracy"])
    assert metrics["loss"] == pytest.approx(final["loss"], rel=1e-6)


def test_the_bare_model_is_evaluated_without_an_adapter(run, capsys):
    main([
        "evaluate", "--model", str(run.model), "--task", "demo", "--eval-data", str(run.eval_data), "--output-file",
        "metrics.json",
    ])  # fmt: skip
    metrics = json.loads(Path("metrics.json").read_text())
    assert metrics["loss"] == pytest.approx(run.summary["initial"]["loss"], rel=1e-6)


def test_another_task_comes_with_its_own_texts(run, capsys):
    config = (run.folder / "config.toml").read_text().replace('task = "demo"', 'template = "Text: {text}"')
    Path("own.toml").write_text(config.replace("labels = []", 'labels = ["0=bad", "1=good"]\ninvocation = " So:"'))
    main(["train", "own.toml", "--output-dir", "own", "--scope", "everywhere", "--num-steps", "1"])
    adapter, data = ["--adapter", "own/adapter"], ["--eval-data", str(run.eval_data)]
    main(["evaluate", *adapter, *data, "--output-file", "own.json"])
    main(["evaluate", *adapter, *data, "--task", "demo", "--output-file", "demo.json"])
    spelled = ["--template", "{text}", "--invocation", " It was", "--labels", "terrible", "great"]
    main(["evaluate", *adapter, *data, *spelled, "--output-file", "spelled.json"])
    own, demo, spelled_out = (json.loads(Path(f"{name}.json").read_text()) for name in ("own", "demo", "spelled"))
    assert demo == spelled_out
    assert demo["loss"] != own["loss"]
    capsys.readouterr()
    main(["predict", *adapter, "--data", str(run.eval_data)])
    assert set(capsys.readouterr().out.split()) <= {"bad", "good"}


def test_predictions_are_label_words_in_the_order_of_the_file(run, tmp_path, capsys):
    main(["evaluate", "--adapter", run.adapter, "--eval-data", str(run.eval_data), "--output-file", "metrics.json"])
    expected = [TASKS["demo"].labels[guess] for guess in json.loads(Path("metrics.json").read_text())["predictions"]]
    capsys.readouterr()
    unlabelled = tmp_path / "unlabelled.jsonl"
    unlabelled.write_text("".join(json.dumps({"text": review["text"]}) + "\n" for review in REVIEWS[:10]))
    for path in (run.eval_data, unlabelled):
        main(["predict", "--adapter", run.adapter, "--data", str(path)])
        assert capsys.readouterr().out.splitlines() == expected


def test_standard_input_is_predicted_line_by_line(run, capsys):
    main(["predict", "--adapter", run.adapter, "--data", str(run.eval_data)])
    expected = capsys.readouterr().out
    lines = [review["text"] if i % 2 else json.dumps(review) for i, review in enumerate(REVIEWS[:10])]
    done = zotune("predict", "--adapter", run.adapter, cwd=Path.cwd(), stdin="\n".join(lines) + "\n\n")
    assert (done.returncode, done.stdout) == (0, expected), done.stderr


def test_a_prediction_stays_on_one_line(run, capsys):
    words = ["very\nbad", "very\r\ngood"]
    main([
        "predict", "--model", str(run.model), "--task", "demo", "--labels", *words, "--data", str(run.eval_data),
    ])  # fmt: skip
    printed = capsys.readouterr().out.split("\n")
    assert len(printed) == 10 + 1
    assert set(printed[:10]) <= {r"very\nbad", r"very\r\ngood"}


def test_a_completion_task_trains_and_completes(run, tmp_path, capsys, monkeypatch):
    pairs = [{"prompt": f"{review['text']}:", "completion": " great"} for review in REVIEWS[:8]]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    main([
        "train", "--model", str(run.model), "--train-data", "pairs.jsonl", "--num-steps", "2", "--batch-size", "2",
        "--output-dir", "completions", "--num-threads", "1",
    ])  # fmt: skip
    summary = json.loads(Path("completions/summary.json").read_text())
    assert summary["task"] == "completion"
    assert summary["final"]["accuracy"] is None
    out = capsys.readouterr().out
    assert "held-out loss" in out
    assert "accuracy" not in out
    complete = ["predict", "--adapter", "completions/adapter", "--max-new-tokens", "4"]
    printed = []
    for options in ([], ["--temperature", "2"]):
        main([*complete, *options, "--data", "pairs.jsonl"])
        from_file = capsys.readouterr().out
        prompts = "".join(pair["prompt"] + "\n" for pair in pairs)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(prompts.encode())))
        main([*complete, *options])
        assert capsys.readouterr().out == from_file
        assert from_file.count("\n") == 8
        printed.append(from_file)
    assert printed[0] != printed[1]


# ---- resume, replay, plot


def test_resuming_a_finished_run_changes_nothing(run, tmp_path, capsys):
    shutil.copytree(run.folder, tmp_path / "run")
    before = contents(tmp_path / "run")
    main(["resume", "run"])
    after = contents(tmp_path / "run")
    assert set(after) == set(before)
    for name in ("config.toml", "journal.jsonl", "metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert after[name] == before[name]
    assert json.loads(after["summary.json"])["final"] == run.summary["final"]
    assert "run folder: run" in capsys.readouterr().out


def test_replay_rebuilds_the_adapter_bit_for_bit_without_the_model(run, tmp_path, capsys):
    hidden = run.model.rename(run.model.with_name("hidden"))
    try:
        for arguments in (["--step", str(NUM_STEPS)], []):
            shutil.rmtree(tmp_path / "replayed", ignore_errors=True)
            main(["replay", str(run.folder), *arguments, "--output-dir", "replayed"])
            assert contents(tmp_path / "replayed") == contents(run.folder / "adapter")
            assert capsys.readouterr().out == f"adapter after step {NUM_STEPS}: replayed\n"
        main(["replay", str(run.folder), "--step", "0", "--output-dir", "start"])
    finally:
        hidden.rename(run.model)
    start, _ = load_adapter(Path("start"))
    assert all(not value.any() for name, value in start.items() if "lora_B" in name)


def test_a_replayed_adapter_evaluates_as_its_step_did(run, capsys):
    main(["replay", str(run.folder), "--step", "3", "--output-dir", "third"])
    (third,) = [event for event in run.events if event["event"] == "eval" and event["step"] == 3]
    main([
        "evaluate", "--adapter", "third", "--model", str(run.model), "--task", "demo", "--eval-data",
        str(run.eval_data), "--output-file", "third.json",
    ])  # fmt: skip
    assert json.loads(Path("third.json").read_text())["loss"] == pytest.approx(third["loss"], rel=1e-6)


def test_two_runs_are_plotted_over_each_other(run, tmp_path, capsys):
    shutil.copytree(run.folder, tmp_path / "other")
    main(["plot", str(run.folder), "other", "--output-dir", "plots"])
    assert capsys.readouterr().out.splitlines() == ["plots/comparison.png", "plots/comparison.svg"]
    assert Path("plots/comparison.png").read_bytes().startswith(b"\x89PNG")
