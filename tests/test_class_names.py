"""Labels that the data name are matched by name, from every kind of source, never by position where names differ."""

import json
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest

from zotune.data.class_names import ClassName
from zotune.data.records import json_lines, load_records
from zotune.data.task_choice import choose_task
from zotune.data.tasks import TASKS
from zotune.data.texts import to_texts
from zotune.errors import InputError

ROWS = {"text": ["awful", "fine", "lovely"], "label": [1, 0, 0]}  # of a data set where class 0 is the good one


def data_set(names: list[str] | None = None) -> datasets.Dataset:
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=names or ["pos", "neg"])
    )
    return datasets.Dataset.from_dict(ROWS, features=features)


def saved(folder: Path) -> Any:
    data_set().save_to_disk(folder / "saved")
    return folder / "saved"


def parquet(folder: Path) -> Any:
    data_set().to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


def folder_of_parquet(folder: Path) -> Any:
    (folder / "data").mkdir()
    data_set().to_parquet(folder / "data" / "train.parquet")
    return folder / "data"


def pandas_categories(folder: Path) -> Any:
    labels = pandas.Categorical.from_codes(ROWS["label"], categories=["pos", "neg"])
    pandas.DataFrame({"text": ROWS["text"], "label": labels}).to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


def kept(folder: Path) -> Any:
    """What a run folder keeps of a data set that was given in memory."""
    (folder / "kept.jsonl").write_bytes(json_lines("train_data", data_set()))
    return folder / "kept.jsonl"


SOURCES = [saved, parquet, folder_of_parquet, pandas_categories, kept, lambda folder: data_set()]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def labels_of(source: Any, *labels: str) -> list[int | None]:
    task = choose_task(None, labels=labels)
    return [text.label for text in to_texts(load_records(source, "--data"), task, {})]


@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)
def test_labels_are_matched_by_name_from_every_source(make, tmp_path):
    source = make(tmp_path)
    assert labels_of(source, "neg=terrible", "pos=great") == [0, 1, 1]
    assert labels_of(source, "pos=great", "neg=terrible") == [1, 0, 0]
    assert labels_of(source, "neg", "pos") == [0, 1, 1]
    assert labels_of(source, "meh=so", "pos=great", "neg=bad") == [2, 1, 1]
    with pytest.raises(InputError, match=r"neg.* terrible, great|terrible, great.*neg"):
        labels_of(source, "terrible", "great")  # by position, awful would be great


@pytest.mark.parametrize("form", ["numpy", "torch"])
def test_the_format_of_a_data_set_does_not_hide_its_names(form):
    assert labels_of(data_set().with_format(form), "neg=terrible", "pos=great") == [0, 1, 1]


def test_a_table_of_pandas_is_refused_and_its_columns_are_no_records():
    with pytest.raises(InputError, match=r'--data: got a DataFrame; give its records, as df.to_dict\("records"\)'):
        load_records(pandas.DataFrame(ROWS), "--data", text_field="text")


def test_a_name_beside_the_number_may_not_say_something_else():
    rows = [{"text": "lovely", "label": 0, "label_text": "pos"}, {"text": "awful", "label": 1, "label_text": "neg"}]
    assert labels_of(rows, "pos=great", "neg=terrible") == labels_of(rows, "great", "terrible") == [0, 1]
    with pytest.raises(InputError, match=r"--data\[0\]: label 0 has the name 'pos' in label_text, .*label=label_text"):
        labels_of(rows, "neg=terrible", "pos=great")
    task = choose_task(None, labels=("neg=terrible", "pos=great"))
    texts = to_texts(load_records(rows, "--data"), task, {"label": "label_text"})
    assert [text.label for text in texts] == [1, 0]


def test_a_refusal_shows_both_lists_and_what_to_write():
    with pytest.raises(InputError) as refused:
        labels_of(data_set(), "terrible", "great")
    assert str(refused.value) == (
        "--data[0]: the data names its labels pos, neg, and --labels has terrible, great; say which word belongs to "
        "which: --labels pos=WORD neg=WORD"
    )


def test_numbers_of_classes_are_never_taken_for_their_names():
    with pytest.raises(InputError, match="the data names its labels pos, neg, and --labels has 1, 0"):
        labels_of(data_set(), "1=terrible", "0=great")
    assert labels_of(data_set(), "bad=neg", "good=pos") == [0, 1, 1]  # the words are the names
    stars = data_set(["1", "2"])  # the name is not the number
    assert labels_of(stars, "1=terrible", "2=great") == [1, 0, 0]
    with pytest.raises(InputError, match=r"the data names its labels 1, 2, and --labels has terrible, great"):
        labels_of(stars, "terrible", "great")


def test_a_hidden_label_has_no_name():
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos"]))
    hidden = datasets.Dataset.from_dict({"text": ["a"], "label": [-1]}, features=features)
    with pytest.raises(InputError, match=r"label -1 is outside 0\.\.1"):
        labels_of(hidden, "neg", "pos")


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("sst2", ["negative", "positive"]), ("imdb", ["neg", "pos"]), ("mr", ["neg", "pos"]),
        ("trec", ["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"]),
    ],
)  # fmt: skip
def test_the_built_in_tasks_know_the_names_that_their_data_sets_have(task, names):
    field = TASKS[task].label_field
    features = datasets.Features({"text": datasets.Value("string"), field: datasets.ClassLabel(names=names)})
    rows = datasets.Dataset.from_dict({"text": ["x"] * len(names), field: list(range(len(names)))}, features=features)
    texts = to_texts(load_records(rows, "--data"), TASKS[task], {})
    assert [text.label for text in texts] == list(range(len(names)))
    assert all(type(text.columns[field]) is ClassName for text in texts)


def test_metadata_that_say_nothing_are_passed_over(tmp_path):
    import pyarrow
    import pyarrow.parquet

    for number, metadata in enumerate(
        (b"oops", b"[]", b'{"info": 3}', json.dumps({"info": {"features": []}}).encode())
    ):
        table = pyarrow.table(ROWS).replace_schema_metadata({b"huggingface": metadata})
        pyarrow.parquet.write_table(table, tmp_path / f"{number}.parquet")
        assert labels_of(tmp_path / f"{number}.parquet", "terrible", "great") == [1, 0, 0]
