"""What the command says of itself: help for every flag, and the tasks that it has."""

from dataclasses import fields
from importlib import import_module

import pytest

from zotune.cli import COMMANDS, main, parse
from zotune.config.settings import Config
from zotune.data.tasks import TASKS

FLAGS = (
    "model", "task", "train_data", "eval_data", "output_dir", "engine", "scope", "num_steps", "batch_size", "epsilon",
    "learning_rate", "lr_scheduler_type", "warmup_steps", "estimator", "optimizer", "directions", "weight_decay",
    "noise", "noise_steps", "noise_blocks", "sparsity", "clip", "tuning", "init_lora_weights", "quantization",
    "adam.beta1", "adamw.eps", "sgd.momentum", "svrg.steps", "es.shaping", "low_rank.rank",
    "seed", "lora_rank", "lora_alpha", "target_modules", "max_length", "eval_steps",
    "early_stopping_patience", "num_per_class",
    "template", "invocation", "labels", "objective", "dtype", "device", "kv_cache_gb",
    "num_threads", "prompt_tuning.num_virtual_tokens",
)  # fmt: skip


def test_dashes_and_underscores_are_the_same():
    dashes, underscores = (
        parse(["train", f"--num{sign}steps", "3", f"--target{sign}modules", "q_proj"]) for sign in "-_"
    )
    assert dashes == underscores
    assert (dashes.num_steps, dashes.target_modules) == (3, ("q_proj",))


def test_tasks_are_listed_with_their_texts(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")  # even on a narrow terminal nothing is cut
    main(["tasks"])
    squeezed = "".join(capsys.readouterr().out.replace("│", " ").split())
    for task in TASKS.values():
        assert task.name in squeezed
    assert "…" not in squeezed
    monkeypatch.setenv("COLUMNS", "200")
    main(["tasks"])
    out = capsys.readouterr().out
    assert "{text} It was" in out
    assert "cornell-movie-review-data/rotten_tomatoes" in out
    assert "NUM=Number" in out


def help_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_its_flags(command, capsys):
    text = help_of([command], capsys)
    positional = {
        "action": "ACTION",
        "job": "NAME",
        "file": "FILE",
        "run_folder": "RUN",
        "run_folders": "RUN",
        "study": "STUDY.toml",
        "source": "DATA",
        "shell": "{bash,zsh,fish}",
    }
    file, name, _ = COMMANDS[command]
    for field in fields(getattr(import_module(f"zotune.commands.{file}"), name)):
        if field.name != "tables":  # they have flags of their own
            assert positional.get(field.name, f"--{field.name.replace('_', '-')}") in text
    assert command in help_of([], capsys)
    assert "(default: None)" not in text


def test_the_flags_of_training_are_fixed(capsys):
    text = help_of(["train"], capsys)
    for name in FLAGS:
        assert f"--{name.replace('_', '-')} " in text
    assert {field.name for field in fields(Config)} >= {name for name in FLAGS if "." not in name}
