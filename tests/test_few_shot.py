"""--num-per-class: as many examples of each label to train on and to hold out, drawn label by label."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_data import write_json_lines
from tests.test_train import StopAt, durable
from zotune import evaluate, mezo_finetune, resume
from zotune.assemble.data import Data, load_data
from zotune.config.reading import make_config
from zotune.data.few_shot import draw_per_class
from zotune.data.tasks import Task
from zotune.errors import InputError
from zotune.inference import _config, _labelled

TASK = Task("three", "{text}", labels=("a", "b", "c"))
LABELS = [number % 5 // 2 for number in range(60)]  # 24 of 0, 24 of 1, 12 of 2
RECORDS = [{"text": f"number {number}", "label": label} for number, label in enumerate(LABELS)]
SETTINGS: dict[str, Any] = {"labels": ("bad", "fair", "good"), "invocation": " It was"}
SEEDS = (13, 21, 42, 87, 100)  # MeZO's


def load(train: Any = RECORDS, evaluation: Any = None, **settings: Any) -> Data:
    return load_data(make_config(SETTINGS | settings), train, evaluation)


def texts(examples: Any, label: int | None = None) -> list[str]:
    return [example.prompt for example in examples if label is None or example.label == label]


@pytest.mark.parametrize("num", [1, 4, 6])
def test_there_are_as_many_of_each_label_to_train_on_and_others_to_hold_out(num):
    data = load(num_per_class=num)
    for examples in (data.train, data.evaluation):
        assert Counter(example.label for example in examples) == {0: num, 1: num, 2: num}
        numbers = [int(text.split()[1]) for text in texts(examples)]
        assert numbers == sorted(numbers)
    assert not set(texts(data.train)) & set(texts(data.evaluation))


def test_with_evaluation_data_nothing_is_held_out_and_those_stay_as_they_are():
    others = [{"text": f"other {number}", "label": 0} for number in range(7)]
    data = load(evaluation=others, num_per_class=12)  # all there are of one label
    assert Counter(example.label for example in data.train) == {0: 12, 1: 12, 2: 12}
    assert data.evaluation == load(evaluation=others).evaluation
    assert len(data.evaluation) == 7


def test_the_data_seed_decides_and_no_other():
    assert load(num_per_class=4, seed=7) == load(num_per_class=4)
    assert len({tuple(texts(load(num_per_class=4, data_seed=seed).train)) for seed in SEEDS}) == len(SEEDS)
    assert len({tuple(texts(load(num_per_class=4, data_seed=seed).evaluation)) for seed in SEEDS}) == len(SEEDS)


@given(st.permutations(range(60)), st.integers(0, 2**53), st.booleans())
def test_what_is_drawn_of_a_label_does_not_depend_on_the_other_labels(order, seed, hold_out):
    """Those are shuffled, and some left out; the label's own examples keep their order."""
    own = iter([place for place in range(60) if LABELS[place] == 1])
    kept = [place for place in order if LABELS[place] != 0 or place % 3 != 0]
    mixed = [next(own) if LABELS[place] == 1 else place for place in kept]
    drawn = [
        draw_per_class(places, [LABELS[place] for place in places], 4, seed, TASK, hold_out)
        for places in (list(range(60)), mixed)
    ]
    for whole, other in zip(*drawn, strict=True):
        assert [p for p in whole if LABELS[p] == 1] == [p for p in other if LABELS[p] == 1]


def test_a_smaller_number_draws_some_of_a_larger_one():
    for label in range(3):
        assert set(texts(load(num_per_class=2).train, label)) < set(texts(load(num_per_class=6).train, label))


def test_without_data_of_ones_own_the_tasks_training_data_are_held_out_too():
    """And not its evaluation data taken: 400 records to train on, and 600 others."""
    data = load_data(make_config({"task": "demo", "num_per_class": 16}))
    assert all("train.jsonl" in text.where for text in (*data.train, *data.evaluation))
    assert (len(data.train), len(data.evaluation)) == (32, 32)


def test_no_more_are_evaluated_than_asked_for():
    assert len(load(num_per_class=6, max_eval_samples=5).evaluation) == 5


def test_labels_are_those_of_records_in_the_shape_of_the_template():
    """Two questions of a passage, with three answers each: a record becomes six examples."""
    answers = [{"text": str(number), "label": number % 2} for number in range(3)]
    questions = [{"question": name, "answers": answers} for name in ("first?", "second?")]
    records = [{"passage": {"text": "It rains.", "questions": questions}}] * 2
    data = load_data(make_config({"task": "multirc", "num_per_class": 2}), records)
    assert Counter(text.label for text in data.train) == Counter(text.label for text in data.evaluation) == {0: 2, 1: 2}


# ---- demonstrations


def test_demonstrations_are_drawn_first():
    plain = load(num_demonstrations=5, num_per_class=3)
    shown = {text.partition(" It was")[0] for text in plain.demonstrations.split("\n\n")[:-1]}
    assert len(shown) == 5
    assert not shown & {*texts(plain.train), *texts(plain.evaluation)}
    assert load(num_demonstrations=5, num_per_class=2).demonstrations == plain.demonstrations
    for examples in (plain.train, plain.evaluation):
        assert Counter(example.label for example in examples) == {0: 3, 1: 3, 2: 3}


def test_what_demonstrations_take_is_not_there_any_more():
    load(num_per_class=6)
    with pytest.raises(InputError, match=r"--train-data has \d to draw from of label 'good'"):
        load(num_per_class=6, num_demonstrations=40)


# ---- runs


@pytest.fixture(scope="module")
def options(opt_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    write_json_lines(path, RECORDS)
    return {
        "model": str(opt_dir), "train_data": str(path), **SETTINGS, "num_per_class": 4, "num_steps": 4,
        "batch_size": 3, "eval_steps": 2, "directions": 2, "num_threads": 1,
    }  # fmt: skip


def test_a_run_is_resumed_on_the_same_examples_and_evaluated_on_those_it_held_out(options, tmp_path):
    whole = mezo_finetune(**options, num_demonstrations=2, output_dir=str(tmp_path / "whole"))
    assert whole.summary["final"]["num_examples"] == 12
    assert "num_per_class = 4" in (whole.run_folder / "config.toml").read_text()
    stopped = {**options, "num_demonstrations": 2, "output_dir": str(tmp_path / "stopped")}
    with pytest.raises(KeyboardInterrupt):
        mezo_finetune(**stopped, callbacks=[StopAt(2)])
    resume(tmp_path / "stopped")
    assert durable(tmp_path / "stopped") == durable(whole.run_folder)
    config = _config(whole.adapter, {})
    assert _labelled(config, None, None)[1] == load_data(config).evaluation
    for num in (None, 2):
        assert replace(evaluate(adapter=whole.adapter, num_demonstrations=num), predictions=None) == whole.final


def test_another_number_is_another_run(options, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        mezo_finetune(**options, output_dir=str(folder), callbacks=[StopAt(2)])
    path = folder / "config.toml"
    path.write_text(path.read_text().replace("num_per_class = 4", "num_per_class = 5"))
    with pytest.raises(InputError, match="was started with other training examples, evaluation examples"):
        resume(folder)


def test_a_run_on_data_of_the_task_is_evaluated_on_what_it_held_out_of_them(tmp_path):
    result = mezo_finetune(
        "demo", num_per_class=3, num_steps=1, batch_size=2, directions=1, num_threads=1, dtype="float32",
        output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    assert replace(evaluate(adapter=result.adapter), predictions=None) == result.final


def test_an_evaluation_on_another_task_draws_nothing(options, tmp_path):
    result = mezo_finetune(**options, output_dir=str(tmp_path / "run"))
    assert _config(result.adapter, {"task": "lm"}).num_per_class is None
    assert _config(result.adapter, {}).num_per_class == 4


# ---- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_train_samples": 5}, "--num-per-class does not go with --max-train-samples"),
        ({"reward": ["length"]}, "--num-per-class does not go with --reward"),
        ({"num_per_class": 0}, "--num-per-class must be 1 or more, got 0"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_read(settings, message):
    with pytest.raises(InputError, match=message):
        make_config({"num_per_class": 2} | settings)


@pytest.mark.parametrize(
    ("settings", "record", "what"),
    [
        ({"task": "lm"}, {"text": "a"}, "task lm has no labels"),
        ({}, {"prompt": "a", "completion": "b"}, "task completion has no labels"),
        ({"task": "copa"}, {}, "task copa has options that each record brings"),
    ],
)
def test_a_task_without_labels_is_refused(settings, record, what):
    with pytest.raises(InputError, match=f"--num-per-class needs labels that examples share .*; {what}"):
        load_data(make_config({"num_per_class": 2} | settings), [record] * 9)


def test_a_label_with_too_few_examples_is_named_with_their_number():
    named = {"labels": ("0=bad", "1=fair", "2=good")}
    message = r"--num-per-class 7 needs 14 examples of each label \(7 to train on, 7 to hold out\), .* has 12 .* '2'; "
    with pytest.raises(InputError, match=message + "lower it, or give --eval-data"):
        load(num_per_class=7, **named)
    load(evaluation=RECORDS[:3], num_per_class=12)
    with pytest.raises(InputError, match=r"13 needs 13 examples of each label, and .* has 12 .* 'good'; lower it$"):
        load(evaluation=RECORDS[:3], num_per_class=13)
    with pytest.raises(InputError, match="has 0 to draw from of label 'good'"):
        load([record for record in RECORDS if record["label"] != 2], num_per_class=1)
