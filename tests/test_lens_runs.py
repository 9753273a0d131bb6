"""Runs by the lens, and where it is the default."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_model, make_tokenizer
from zotune import mezo_finetune
from zotune.assemble.model import Model, facts_of
from zotune.config.reading import make_config
from zotune.config.run import Facts, resolve
from zotune.config.settings import Config
from zotune.data.task_choice import choose_task
from zotune.errors import InputError


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["lora", "lora_fa"])
def test_a_run_by_the_lens_learns_and_keeps_its_start(tuning, opt_dir: Path, reviews_file: Path, tmp_path: Path):
    mezo_finetune(
        str(opt_dir), train_data=str(reviews_file), labels=("terrible", "great"), invocation=" It was",
        estimator="lens", tuning=tuning, num_steps=30, batch_size=8, eval_steps=30, lora_rank=2, num_threads=1,
        output_dir=str(tmp_path / "run"), learning_rate=3e-3,
    )  # fmt: skip
    summary = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    assert summary["final"]["loss"] < summary["initial"]["loss"]
    assert (tmp_path / "run" / "start.safetensors").is_file()
    header = json.loads((tmp_path / "run" / "journal.jsonl").read_text("utf-8").splitlines()[0])
    assert set(header["lora"]["target_modules"]) == {"q_proj", "k_proj", "v_proj", "out_proj"}


def settled(num_parameters: int = 200_000_000, writers: tuple[str, ...] | None = ("fc2",), **asked: Any) -> Config:
    config = make_config({"labels": ("terrible", "great"), "train_data": "x.jsonl", **asked})
    facts = Facts(num_parameters, 512, None, "cpu", "float32", 1, writers=writers)
    task = choose_task(None, invocation=config.invocation, labels=config.labels)
    return resolve(config, task, facts).config


def test_the_lens_trains_where_nothing_else_is_named():
    config = settled(invocation=" It was")
    assert (config.estimator, config.tuning, config.target_modules) == ("lens", "lora", ("fc2",))
    assert settled(scope="everywhere").estimator == settled(tuning="lora_fa").estimator == "lens"
    assert (config.learning_rate, settled(num_parameters=5_000_000).learning_rate) == (3e-3, 3e-3)


def test_where_an_activated_adapter_cannot_have_all_writers_attention_stands_in():
    """OPT's fc2; SGLang's lens keeps to those that are left."""
    config = make_config({"labels": ("terrible", "great"), "invocation": " It was", "train_data": "x.jsonl"})
    opt = Model("opt", make_model("opt").config, make_tokenizer(), None, trust_remote_code=False)
    for engine, expected in (("torch", {"q_proj", "k_proj", "v_proj", "out_proj"}), ("sglang", {"out_proj"})):
        found = facts_of(opt, replace(config, engine=engine))
        assert set(found.writers or ()) == {"out_proj", "fc2"}
        assert set(found.activated_writers or ()) == expected


@pytest.mark.parametrize(
    "asked",
    [
        {"writers": None}, {"directions": 4}, {"epsilon": 0.05}, {"optimizer": "sgd"},
        {"tuning": "vera"}, {"noise": "rademacher"}, {"adapter": "some"},
    ],
    ids=str,
)  # fmt: skip
def test_probes_are_the_default_where_there_is_no_lens_and_where_their_settings_are_named(asked):
    config = settled(invocation=" It was", **asked)
    assert config.estimator == "one_sided"
    assert config.target_modules == (None if config.adapter else ("q_proj", "v_proj"))


def test_a_model_that_turns_out_to_have_no_lens_is_trained_by_probes(opt_dir, reviews_file, tmp_path, monkeypatch):
    monkeypatch.setattr("zotune.engine.torch.blocks.MIXERS", ("a kind that it does not have",))
    settings: Any = {"train_data": str(reviews_file), "labels": ("terrible", "great"), "invocation": " It was"}
    settings |= {"num_steps": 1, "lora_rank": 2, "num_threads": 1, "output_dir": str(tmp_path / "run")}
    mezo_finetune(str(opt_dir), **settings)
    journal = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text("utf-8").splitlines()]
    assert journal[0]["lora"]["target_modules"] == ["q_proj", "v_proj"]
    with pytest.raises(InputError, match="0 modules of attention"):
        mezo_finetune(str(opt_dir), **settings | {"estimator": "lens", "output_dir": str(tmp_path / "other")})
