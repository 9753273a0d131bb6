"""Records are the same from every format; splits and samples are drawn by seed; the task is found from the data."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zotune.assemble.data import load_data
from zotune.config.reading import make_config
from zotune.data.records import Record, load_records, sample_records, split_records
from zotune.data.task_choice import choose_task
from zotune.data.tasks import TASKS
from zotune.data.texts import to_texts
from zotune.errors import InputError

ROWS = [
    {"text": "an odd, “quoted” film", "label": 1},
    {"text": 'two\nlines and a "quote"', "label": 0},
    {"text": "a line separator \u2028 inside, ünïcode 映画", "label": 1},
    {"text": "the end", "label": 0},
]


def write_json_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, rows: list[dict]) -> None:
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def write_csv(path: Path, rows: list[dict]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode())


def gzipped(write: Callable[[Path, list[dict]], None]) -> Callable[[Path, list[dict]], None]:
    def write_gz(path: Path, rows: list[dict]) -> None:
        write(path, rows)
        path.write_bytes(gzip.compress(path.read_bytes()))

    return write_gz


def write_parquet(path: Path, rows: list[dict]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def save_dataset(path: Path, rows: list[dict]) -> None:
    datasets.Dataset.from_list(rows).save_to_disk(path)


def save_splits(path: Path, rows: list[dict]) -> None:
    other = datasets.Dataset.from_list([{"text": "of another split", "label": 1}])
    datasets.DatasetDict(train=datasets.Dataset.from_list(rows), test=other).save_to_disk(path)


def write_folder(path: Path, rows: list[dict]) -> None:
    path.mkdir()
    write_json_lines(path / "train.jsonl", rows)


FORMATS: dict[str, Callable[[Path, list[dict]], None]] = {
    "rows.jsonl": write_json_lines,
    "rows.JSONL": write_json_lines,
    "rows.json": write_json,
    "rows.csv": write_csv,
    "rows.jsonl.gz": gzipped(write_json_lines),
    "rows.json.gz": gzipped(write_json),
    "rows.csv.gz": gzipped(write_csv),
    "rows.parquet": write_parquet,
    "a_saved_data_set": save_dataset,
    "saved_splits": save_splits,
    "a_folder": write_folder,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the data set library keeps of a folder stays in the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def demo_texts(source: object) -> list[tuple[str, int | None]]:
    return [(text.prompt, text.label) for text in to_texts(load_records(source, "--train-data"), TASKS["demo"], {})]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_records(name, tmp_path):
    FORMATS[name](tmp_path / name, ROWS)
    assert demo_texts(tmp_path / name) == [(row["text"], row["label"]) for row in ROWS]


@pytest.mark.parametrize("make", [list, tuple, iter, datasets.Dataset.from_list])
def test_python_objects_give_the_same_records_as_files(make):
    assert demo_texts(make(ROWS)) == [(row["text"], row["label"]) for row in ROWS]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.json"])
def test_a_byte_order_mark_is_not_part_of_the_data(name, tmp_path):
    FORMATS[name](tmp_path / name, ROWS)
    plain = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + plain)
    assert demo_texts(tmp_path / name) == [(row["text"], row["label"]) for row in ROWS]


def test_blank_lines_are_skipped_and_line_numbers_are_of_the_file(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'\n{"text": "a"}\r\n  \n\n{"text": "b"}')
    (tmp_path / "rows.csv").write_bytes(b'text\n\na\n\n"b\nc"\n')
    for name, lines in (("rows.jsonl", (2, 5)), ("rows.csv", (3, 6))):
        path = tmp_path / name
        assert [record.where for record in load_records(path, "--data")] == [f"{path}:{line}" for line in lines]


def test_a_text_in_csv_may_be_longer_than_the_limit_of_the_csv_module(tmp_path):
    text = "long" * 50_000
    write_csv(tmp_path / "rows.csv", [{"text": text, "label": 1}])
    assert demo_texts(tmp_path / "rows.csv") == [(text, 1)]


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("rows.jsonl", "rows.parquet"):
        FORMATS[name](tmp_path / name, ROWS)
        assert demo_texts(f"~/{name}") == demo_texts(ROWS)


def test_evaluation_takes_the_split_for_it_and_says_which_there_are(tmp_path):
    save_splits(tmp_path / "both", ROWS)
    assert len(load_records(tmp_path / "both", "--eval-data", "test")) == 1
    datasets.DatasetDict(
        train=datasets.Dataset.from_list(ROWS), validation=datasets.Dataset.from_list(ROWS[:2])
    ).save_to_disk(tmp_path / "named")
    assert len(load_records(tmp_path / "named", "--eval-data", "test")) == 2
    datasets.DatasetDict(only=datasets.Dataset.from_list(ROWS[:3])).save_to_disk(tmp_path / "single")
    assert len(load_records(tmp_path / "single", "--eval-data", "test")) == 3
    datasets.DatasetDict(a=datasets.Dataset.from_list(ROWS), b=datasets.Dataset.from_list(ROWS)).save_to_disk(
        tmp_path / "odd"
    )
    with pytest.raises(InputError, match=r"--eval-data: .*odd has no split 'test' \(it has a, b\)"):
        load_records(tmp_path / "odd", "--eval-data", "test")


# ---- fields and labels


@pytest.mark.parametrize(
    ("text", "label"),
    [("text", "label"), ("sentence", "labels"), ("review", "sentiment"), ("content", "class"), ("question", "target")],
)
def test_usual_names_of_fields_are_known(text, label):
    assert demo_texts([{label: 1, "id": 7, text: "fine"}]) == [("fine", 1)]


def test_a_tasks_own_name_comes_before_its_other_names():
    row = {"label": 5, "coarse_label": 3, "question": "Who?"}
    (text,) = to_texts([Record(row, "here")], TASKS["trec"], {})
    assert (text.prompt, text.label) == ("Question: Who?\n", 3)


def test_fields_are_renamed_by_option():
    row = {"text": "not this", "body": "this", "label": 0, "stars": 1}
    for names in ({"text": "body", "label": "stars"}, {"label": "stars", "text": "body"}):
        (text,) = to_texts([Record(row, "here")], TASKS["demo"], names)
        assert (text.prompt, text.label) == ("this", 1)
    row = {"text": "Who?", "coarse_label": 0, "kind": 4}
    for role in ("label", "coarse_label"):
        (text,) = to_texts([Record(row, "here")], TASKS["trec"], {role: "kind"})
        assert text.label == 4


LABELS = ("neg=terrible", "pos=great")


@pytest.mark.parametrize("value", [1, 1.0, "1", "1.0", True, "pos", "great"])
def test_a_label_may_be_an_id_a_name_or_a_word(value):
    task = replace(TASKS["demo"], labels=LABELS)
    (text,) = to_texts([Record({"text": "a", "label": value}, "here")], task, {})
    assert text.label == 1


def test_what_is_true_or_false_may_be_named_so_in_any_order():
    rows = [{"text": "a", "label": value} for value in (True, False, "true", "false")]
    for labels, expected in (
        (("no", "yes"), [1, 0]),
        (("true=yes", "false=no"), [0, 1] * 2),
        (("True=yes", "False=no"), [0, 1]),
    ):
        task = choose_task(None, labels=labels)
        assert [text.label for text in to_texts(load_records(rows[: len(expected)], "--data"), task, {})] == expected


def test_names_of_labels_that_are_numbers_are_not_taken_for_ids():
    task = replace(TASKS["demo"], labels=("1=great", "-1=terrible"))
    rows = [{"text": "a", "label": value} for value in (1, "1", -1, "-1", 1.0)]
    assert [text.label for text in to_texts(load_records(rows, "--data"), task, {})] == [0, 0, 1, 1, 0]
    with pytest.raises(InputError, match="label 0 is not among the labels 1, -1"):
        to_texts(load_records([{"text": "a", "label": 0}], "--data"), task, {})


def test_stars_need_names_since_they_could_be_ids():
    with pytest.raises(InputError, match="a 1 in the data could be this word or a label id"):
        choose_task(None, labels=("1", "2", "3"))
    task = choose_task(None, labels=("1=1", "2=2", "3=3"))
    rows = [{"text": "a", "label": value} for value in (1, "2", 3)]
    assert [text.label for text in to_texts(load_records(rows, "--data"), task, {})] == [0, 1, 2]
    ids = choose_task(None, labels=("0", "1", "2"))
    assert [text.label for text in to_texts(load_records(rows[:2], "--data"), ids, {})] == [1, 2]


def test_an_equals_sign_may_be_a_label_word():
    task = choose_task(None, labels=("<", "=", ">"))
    assert task.label_words == task.label_names == ("<", "=", ">")


def test_labels_may_be_absent_where_they_are_to_be_predicted():
    (text,) = to_texts([Record({"text": "a"}, "here")], TASKS["demo"], {}, need_labels=False)
    assert text.label is None
    (text,) = to_texts([Record({"prompt": "a"}, "here")], TASKS["completion"], {}, need_labels=False)
    assert (text.prompt, text.completion) == ("a", "")


# ---- splits and samples

RECORDS = [Record({"text": str(index)}, str(index)) for index in range(60)]


@given(count=st.integers(2, 60), share=st.floats(0.01, 0.9), seed=st.integers(0, 2**40))
def test_a_split_loses_nothing_and_shares_nothing(count, share, seed):
    records = RECORDS[:count]
    train, held_out = split_records(records, share, seed)
    assert len(held_out) == max(1, round(share * count))
    assert sorted(train + held_out, key=records.index) == records
    assert train == [record for record in records if record in train]  # in the order of the data
    sample_records(records, 1, seed + 1, "train")  # what else is drawn, and when, does not matter
    assert split_records(records, share, seed) == (train, held_out)


@given(count=st.integers(1, 60), limit=st.integers(1, 70), seed=st.integers(0, 2**40))
def test_a_sample_is_drawn_by_seed_without_repeats_in_the_order_of_the_data(count, limit, seed):
    records = RECORDS[:count]
    sample = sample_records(records, limit, seed, "eval")
    assert len(sample) == len({record.where for record in sample}) == min(count, limit)
    assert sample == [record for record in records if record in sample]
    sample_records(records, limit, seed, "train")
    assert sample_records(records, limit, seed, "eval") == sample


def test_seeds_and_purposes_draw_differently():
    draws = {
        tuple(record.where for record in sample_records(RECORDS, 10, seed, name))
        for seed in range(20)
        for name in ("train", "eval")
    }
    assert len(draws) == 40
    assert len({tuple(r.where for r in split_records(RECORDS, 0.1, seed)[1]) for seed in range(20)}) == 20


def test_the_training_seed_does_not_change_the_data(tmp_path):
    write_json_lines(tmp_path / "rows.jsonl", [{"text": f"number {i}", "label": i % 2} for i in range(50)])
    settings = {
        "task": "demo", "train_data": str(tmp_path / "rows.jsonl"), "max_train_samples": 20, "max_eval_samples": 3
    }  # fmt: skip
    first = load_data(make_config(settings))
    assert load_data(make_config(settings | {"seed": 7})) == first
    assert (len(first.train), len(first.evaluation)) == (20, 3)
    assert not {record.where for record in first.train} & {record.where for record in first.evaluation}
    assert load_data(make_config(settings | {"data_seed": 7})) != first


# ---- which task


@pytest.mark.parametrize(
    ("record", "task"),
    [
        ({"prompt": "a", "completion": "b"}, "completion"),
        ({"instruction": "a", "response": "b"}, "completion"),
        ({"instruction": "a", "input": "", "output": "b"}, "alpaca"),
        ({"instruction": "a", "output": "b"}, "alpaca"),
        ({"question": "a", "answer": "b"}, "completion"),
        ({"prompt": "a", "completion": "b", "text": "c", "label": 1}, "completion"),
        ({"text": "a"}, "lm"),
        ({"content": "a", "id": 3}, "lm"),
    ],
)
def test_the_task_is_found_from_the_fields(record, task):
    assert choose_task(None, sample=record) == TASKS[task]


def test_texts_with_labels_need_label_words():
    with pytest.raises(InputError, match="--labels: the data has texts with labels"):
        choose_task(None, sample={"text": "a", "label": 1})
    task = choose_task(None, sample={"text": "a", "label": 1}, labels=("bad", "good"), invocation=" So")
    assert (task.template, task.invocation, task.label_words) == ("{text}", " So", ("bad", "good"))


def test_the_task_is_found_from_renamed_fields(tmp_path):
    write_json_lines(tmp_path / "rows.jsonl", [{"body": "a"}, {"body": "b"}])
    settings = {"train_data": str(tmp_path / "rows.jsonl")}
    assert load_data(make_config(settings | {"fields": ["text=body"]})).task == TASKS["lm"]
    write_json_lines(tmp_path / "rows.jsonl", [{"body": "a", "stars": 1}] * 2)
    with pytest.raises(InputError, match="--labels: the data has texts with labels"):
        load_data(make_config(settings | {"fields": ["text=body", "label=stars"]}))


def test_without_data_the_demo_is_trained_and_its_own_data_are_taken():
    data = load_data(make_config({}))
    assert data.task == TASKS["demo"]
    assert {str(text.columns["label"]) for text in data.train} == {"0", "1"}


def test_unknown_fields_are_refused_with_the_names_there_are():
    with pytest.raises(InputError, match="cannot tell the task from the fields stuff, more"):
        choose_task(None, sample={"stuff": 1, "more": 2})
