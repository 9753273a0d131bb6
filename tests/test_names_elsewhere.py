"""Settings by the names that people know from elsewhere, in YAML, and what those of transformers' Trainer do here."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REVIEWS
from zotune import InputError, evaluate, mezo_finetune, resume
from zotune.cli import main, parse
from zotune.config.elsewhere import NO_SETTING, SAME
from zotune.config.fields import Fields
from zotune.config.reading import make_config, read_settings, read_toml
from zotune.config.renamed import new_name
from zotune.config.yaml_text import parse_yaml

NAMES = set(Fields.__dataclass_fields__)
LABELS: dict[str, Any] = {"labels": ("terrible", "great"), "invocation": " It was", "num_threads": 1}


def test_no_name_has_two_meanings():
    assert set(SAME.values()) <= NAMES
    assert not (set(SAME) | set(NO_SETTING)) & NAMES
    assert not set(SAME) & set(NO_SETTING)
    assert all(new_name(name) is None for name in (*SAME, *NO_SETTING))


def test_names_from_elsewhere_are_settings_in_python_in_files_and_on_the_command_line(tmp_path):
    wanted = make_config({"num_steps": 7, "batch_size": 4, "model": "x"})
    assert make_config({"max_steps": 7, "per-device-train-batch-size": 4, "model_name_or_path": "x"}) == wanted
    file = tmp_path / "run.yaml"
    file.write_text("max_steps: 7\nper_device_train_batch_size: 4\nbase_model: x\n")
    assert read_settings(file) == wanted
    for words in (
        ["--max_steps", "7", "--micro-batch-size=4", "--model-name-or-path", "x"], [str(file)],
        ["--config", str(file)], [f"--config={file}"],
    ):  # fmt: skip
        assert parse(["train", *words]).config == wanted
    assert parse(["train", str(file), "--max-steps", "9"]).config.num_steps == 9


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_steps": 7, "num_steps": 8}, "max_steps and num_steps are the same here; give one of the two"),
        ({"lora_r": 7, "lora-rank": 7}, "lora_r and lora_rank are the same here"),
        ({"fp16": True}, "fp16 is no setting here: give --dtype float16"),
        ({"num_train_epochs": 1, "num_steps": 7}, "--num-train-epochs does not go with --num-steps"),
        ({"save_total_limit": 1}, "--save-total-limit has no effect without --save-steps"),
        ({"eval_strategy": "no", "early_stopping_patience": 1}, "--early-stopping-patience has no effect with --eval"),
        ({"run_name": "a/b"}, "--run-name: 'a/b' is no name of a folder"),
    ],
)
def test_what_means_nothing_here_is_refused_in_one_sentence(values, message):
    with pytest.raises(InputError, match=message):
        make_config(values)


def test_yaml_is_read_as_people_mean_it(tmp_path):
    text = "learning_rate: 1e-3\nlabels: [no, yes]\neval_strategy: no\noverwrite: true\nadam: {beta1: 0.95}\nseed: 3\n"
    file = tmp_path / "run.yml"
    file.write_text(text)
    config = read_settings(file)
    assert (config.learning_rate, config.labels, config.eval_strategy) == (1e-3, ("no", "yes"), "no")
    assert (config.overwrite, config.tables, config.seed) == (True, {"adam": {"beta1": 0.95}}, 3)
    values = "[~, null, 1.5, .5, 1., 010, +3, -1e5, .inf, 12:30, 0x10, off, '1']"
    assert parse_yaml(values) == [
        None, None, 1.5, 0.5, 1.0, 10, 3, -1e5, float("inf"), "12:30", "0x10", "off", "1"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "is not YAML: the key 'seed' is there twice"),
        ("seed: [1\n", "is not YAML"),
        ("- a\n", "expected settings by their names"),
        ("seed: !!python/object/apply:os.getcwd []\n", "is not YAML"),
        ("num_step: 1\n", "did you mean num_steps"),
    ],
)
def test_yaml_that_cannot_be_settings_is_refused_with_its_file(tmp_path, text, message):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as refused:
        read_settings(file)
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_epochs_say_how_long_a_run_is_and_when_it_evaluates(opt_dir, tmp_path):
    data = REVIEWS[:20]
    result = mezo_finetune(
        str(opt_dir), data, data[:4], output_dir=tmp_path / "run", num_train_epochs=1.5, eval_strategy="epoch",
        per_device_train_batch_size=8, directions=1, estimator="one_sided", **LABELS,
    )  # fmt: skip
    config = read_toml(result.run_folder / "config.toml")
    assert (config.num_steps, config.eval_steps, config.num_train_epochs) == (4, 3, None)  # ceil(1.5 * 20 / 8)
    assert result.summary["steps"] == 4


@pytest.mark.parametrize("estimator", ["one_sided", "lens"])
def test_checkpoints_are_kept_at_save_steps_and_the_oldest_go(opt_dir, tmp_path, estimator):
    settings = {
        "eval_strategy": "no", "save_steps": 2, "save_total_limit": 2, "batch_size": 4, "estimator": estimator, **LABELS
    }  # fmt: skip
    result = mezo_finetune(str(opt_dir), REVIEWS[:8], output_dir=tmp_path / "run", num_steps=7, **settings)
    kept = sorted(path.name for path in result.run_folder.glob("checkpoint-*"))
    assert kept == ["checkpoint-4", "checkpoint-6"]
    assert result.initial is None
    shorter = mezo_finetune(str(opt_dir), REVIEWS[:8], output_dir=tmp_path / "six", num_steps=7, **settings)
    for name in kept:
        mine, other = (run.run_folder / name / "adapter_model.safetensors" for run in (result, shorter))
        assert mine.read_bytes() == other.read_bytes()
    assert (result.run_folder / "checkpoint-6" / "adapter_config.json").is_file()
    with pytest.raises(InputError, match="the adapter's run held nothing out"):
        evaluate(adapter=result.adapter)
    assert evaluate(REVIEWS[:8], adapter=result.run_folder / "checkpoint-6").num_examples == 8
    assert resume(result.run_folder).summary["steps"] == 7


def test_a_run_has_its_name_and_says_its_loss_as_often_as_asked(opt_dir, reviews_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--labels", "terrible", "great", "--num-steps", "6", "--num-threads", "1", "--logging-steps", "3"]
    main(["train", "--model", str(opt_dir), "--train-file", str(reviews_file), "--run-name", "mine", *words])
    assert (Path("output") / "mine" / "adapter").is_dir()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["3/6", "6/6"]
