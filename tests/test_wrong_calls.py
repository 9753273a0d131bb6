"""Calls from Python with values of the wrong type are refused with an InputError, and never with another exception."""

import contextlib
import datetime
import decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import REVIEWS
from zotune import InputError, evaluate, make_trainer, mezo_finetune, predict, resume
from zotune.config.fields import Fields
from zotune.config.reading import make_config
from zotune.config.settings import Config
from zotune.config.tables import METHOD_TABLES
from zotune.replay import replay_run

FRAME = pandas.DataFrame(REVIEWS)
ODD: list[Any] = [
    5, 1.5, None, True, b"x", object(), {1, 2}, [1], (), {}, {"a": 1}, np.zeros(3), FRAME, (n for n in (1, 2)), print,
    "\udcff", "a\0b", "x" * 300, 10**400, -(10**400), float("nan"), float("inf"), 1 + 2j, decimal.Decimal("1e999"),
    np.float32("nan"), np.int64(-1), np.bool_(True), datetime.date(2026, 1, 1), int("9" * 4000) ** 2,
]  # fmt: skip


def refused(call: Any) -> None:
    """The call raises InputError, in one line of reasonable length."""
    with pytest.raises(InputError) as error:
        call()
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 1000


@pytest.fixture
def good(opt_dir, tmp_path) -> dict[str, Any]:
    return {
        "model": opt_dir, "train_data": REVIEWS, "task": "demo", "num_steps": 2, "batch_size": 2, "num_threads": 1,
        "output_dir": tmp_path / "run",
    }  # fmt: skip


WRONG: dict[str, list[Any]] = {
    "model": [5, None, object(), [1], "a\0b", "\udcff", b"x", SimpleNamespace(name_or_path="x"), FRAME],
    "tokenizer": [5, "gpt2", object(), [1]],
    "callbacks": [5, "x", [5], [None], {"a": 1}, object()],
    "train_data": [5, 1.5, b"x", object(), {1, 2}, ["x"], [[1]], [None], {}, {"a": [1]}, FRAME, print, "\udcff", []],
    "eval_data": [5, object(), {1, 2}, [None], FRAME, "x" * 300],
    "task": [5, ["sst2"], "\udcff", True],
    "labels": ["great", 5, [1, 2], ["a", None], {"a": "b"}, FRAME],
    "fields": [5, "text=body", [1], {"text": "body"}],
    "target_modules": ["", 5, [5], [None], {"q_proj"}, []],
    "num_steps": [None, "2", 2.0, -1, True, [2], 10**400, np.float64(2), FRAME, np.zeros(2)],
    "learning_rate": ["1e-3", [1e-3], True, 10**400, float("nan"), np.float32("nan"), 1 + 2j, decimal.Decimal("1e-3")],
    "overwrite": [1, "yes", None, [True]],
    "output_dir": [5, object(), "\udcff", "a\0b", Path("x" * 300), b"x", "", True],
    "scope": [5, ["activated"], np.array(["activated"]), FRAME, True],
    "adam": [5, "beta1", [("beta1", 0.9)], {"beta1": "0.9"}, {1: 0.9}, {"beta1": None}, {"beta1": FRAME}],
    "tables": [5, None, [1], {"adam": 5}, {"lion": {}}, {5: {}}],
    "no_such_setting": [5],
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_training_refuses_values_of_the_wrong_type(name, good, tmp_path):
    for value in WRONG[name]:
        refused(lambda value=value: mezo_finetune(**{**good, name: value}))
        assert list(tmp_path.iterdir()) == [], repr(value)


def test_what_numpy_and_pathlib_have_is_welcome(good):
    welcome = {
        "num_steps": np.int64(2), "learning_rate": np.float32(1e-3), "overwrite": np.bool_(False), "callbacks": None,
        "target_modules": ["q_proj"], "seed": np.uint8(3), "adam": {"beta1": np.float64(0.5)}, "max_eval_samples": None,
    }  # fmt: skip
    with make_trainer(**{**good, **welcome}) as trainer:
        assert trainer.plan.num_steps == 2
        assert type(trainer.plan.seed) is int


@pytest.mark.parametrize(("call", "wrong"), [
    (lambda **given: evaluate(**{"eval_data": REVIEWS, "task": "demo", **given}), {
        "eval_data": [5, object(), ["x"], [None], FRAME, "\udcff", "a\0b", b"x"],
        "adapter": [5, object(), "", "\udcff", "a\0b", Path("x" * 300), b"x"],
        "max_eval_samples": [-1, 0, "all", 1.5, True, 10**30, FRAME],
        "dtype": [5, "half"],
        "device": [5, "gpu"], "task": [5], "model": [5, object()], "labels": ["a"], "nothing": [5],
        "tables": [5],
    }),
    (lambda **given: predict(**{"data": REVIEWS, "task": "demo", **given}), {
        "data": [5, object(), [None], [5], FRAME, "\udcff", "a\0b", []],
        "adapter": [5, object(), "", "a\0b"],
        "max_new_tokens": [0, -1, "many", 1.5, None, 10**30, FRAME],
        "temperature": [-1, "warm", None, float("nan"), 1e-300, 10**400, FRAME, 1 + 2j],
        "engine": [5, "vllm"], "max_length": ["x", 1], "num_threads": [0, 10**6, "x"],
    }),
    (lambda **given: resume(**{"run_folder": "nothing", **given}), {
        "run_folder": [5, None, object(), "", "a\0b", "\udcff", "nothing", Path("x" * 300), b"x", FRAME],
        "model": ["x", 5], "tokenizer": [5], "callbacks": [5, [5]],
    }),
    (lambda **given: replay_run(**{"run_folder": "nothing", "output_dir": "out", **given}), {
        "run_folder": [5, None, object(), "", "a\0b", "nothing", b"x"],
        "output_dir": [5, None, object(), "", "a\0b", b"x"],
        "step": ["x", 1.5, True, 10**400, FRAME],
    }),
], ids=["evaluate", "predict", "resume", "replay"])  # fmt: skip
def test_other_calls_refuse_values_of_the_wrong_type(call, wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, values in wrong.items():
        for value in values:
            refused(lambda name=name, value=value: call(**{name: value}))
    assert list(tmp_path.iterdir()) == []


SETTINGS = [name for name in Fields.__dataclass_fields__ if name != "tables"]


@pytest.mark.parametrize("name", [*SETTINGS, "tables", *METHOD_TABLES])
def test_a_setting_takes_or_refuses_whatever_it_is_given(name):
    for value in ODD:
        with contextlib.suppress(InputError):
            assert isinstance(make_config({name: value}), Config)


@given(st.sampled_from([(table, key) for table, settings in METHOD_TABLES.items() for key in settings]), st.data())
def test_a_setting_of_a_method_takes_or_refuses_whatever_it_is_given(place, data):
    table, key = place
    numbers = st.floats() | st.integers() | st.integers(10**300, 10**320) | st.text() | st.none() | st.booleans()
    value = data.draw(numbers | st.lists(numbers, max_size=2) | st.binary(max_size=3))
    try:
        taken = METHOD_TABLES[table][key].checked(f"--{table}.{key}", value)
    except InputError:
        return
    assert type(taken) is type(METHOD_TABLES[table][key].default)
