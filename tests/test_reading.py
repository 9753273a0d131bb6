"""What a file says is what is read: what would be lost or changed on the way is refused, with file and line."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from zotune.assemble.data import load_data
from zotune.config.reading import make_config
from zotune.config.run import absolute
from zotune.data.records import load_records
from zotune.data.task_choice import choose_task
from zotune.data.tasks import TASKS
from zotune.data.texts import to_texts
from zotune.errors import InputError

GOOD = '{"text": "a", "label": 1}\n'
REFUSED: dict[str, tuple[str, str | bytes, str]] = {
    "a key twice": (
        "rows.jsonl",
        GOOD + '{"text": "a", "label": 1, "text": "b"}',
        ":2: an object has the key 'text' twice",
    ),
    "a key twice below": ("rows.jsonl", '{"text": "a", "x": {"y": 1, "y": 2}}', ":1: an object has the key 'y' twice"),
    "a key twice in a list": (
        "rows.json",
        f'[{GOOD}, {{"label": 1, "label": 0}}]',
        ": an object has the key 'label' tw",
    ),
    "a column twice": ("rows.csv", "text,label,text\na,1,b\n", ":1: the column 'text' is there twice"),
    "two columns without a name": ("rows.csv", ",text,label,\n0,a,1,\n", ":1: the column '' is there twice"),
    "nested too deeply": (
        "rows.jsonl",
        GOOD + '{"x": ' + "[" * 9**5 + "]" * 9**5 + "}",
        ":2: lists or objects are nested",
    ),
    "all nested too deeply": ("rows.json", "[" * 9**5, ": lists or objects are nested too deeply"),
    "a number too long": (
        "rows.jsonl",
        GOOD * 2 + '{"x": ' + "9" * 5000 + "}",
        ":3: a whole number has too many digits",
    ),
    "half a character": (
        "rows.jsonl",
        GOOD + '{"text": "a \\ud83d", "label": 1}',
        ":2: field 'text' has half a charact",
    ),
    "Latin-1": ("rows.csv", "text,label\na,1\ncafé,1\n".encode("latin-1"), ":3: not UTF-8 (byte 0xe9)"),
    "Latin-1, packed": ("rows.jsonl.gz", gzip.compress((GOOD + "é").encode("latin-1")), ":2: not UTF-8 (byte 0xe9)"),
    "UTF-16": ("rows.jsonl", GOOD.encode("utf-16"), ":1: not UTF-8 (byte 0xff)"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def texts_of(source: object, task: str = "demo") -> list[str]:
    return [text.prompt for text in to_texts(load_records(source, "--data"), TASKS[task], {})]


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_lost_is_refused_with_its_place(case, tmp_path):
    name, content, reason = REFUSED[case]
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as refused:
        texts_of(path)
    assert str(refused.value).startswith(f"{path}{reason}")
    assert "\n" not in str(refused.value)


def test_a_column_twice_in_parquet_is_refused(tmp_path):
    table = pyarrow.table(
        [pyarrow.array(["a"]), pyarrow.array([1]), pyarrow.array(["b"])], names=["text", "label", "text"]
    )
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=r"rows\.parquet: the column 'text' is there twice"):
        texts_of(tmp_path / "rows.parquet")


def test_whole_characters_are_read_however_they_are_written(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "\\ud83c\\udfac \\u00e9", "label": 1}\n')
    assert texts_of(tmp_path / "rows.jsonl") == ["🎬 é"]


@pytest.mark.parametrize("option", ["template", "invocation", "labels", "separator"])
def test_half_a_character_in_a_setting_is_refused(option):
    settings: dict[str, Any] = {"labels": ("no", "yes"), "template": "{text}", option: "{text} \ud83d"}
    if option == "labels":
        settings["labels"] = ("no", "\udcff")
    with pytest.raises(InputError, match=f"--(label-)?{option}: .* has half a character in it"):
        choose_task(None, **settings)


def test_lines_of_an_open_file_are_texts_or_objects_by_their_place():
    assert load_records(io.StringIO("a text"), "--data", text_field="text")[0].fields == {"text": "a text"}
    lines = '\ufefffirst\r\n\n  \n {"text": "second"}\nthird \u2028 line'.encode()
    records = load_records(io.BytesIO(lines), "--data", text_field="text")
    assert [(dict(record.fields), record.where) for record in records] == [
        ({"text": "first"}, "standard input:1"),
        ({"text": "second"}, "standard input:4"),
        ({"text": "third \u2028 line"}, "standard input:5"),
    ]


def test_a_column_twice_in_a_folder_is_refused(tmp_path, capfd):
    for folder, name, content in (
        ("table", "rows.csv", "text,label,text\na,1,b\n"), ("lines", "rows.jsonl", '{"text": "a", "text": "b"}\n')
    ):  # fmt: skip
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(content)
    with pytest.raises(InputError, match=r"\[0\]: the column 'text' is there twice, also as 'text\.1'"):
        load_data(make_config({"task": "demo", "train_data": str(tmp_path / "table")}), eval_data=[json.loads(GOOD)])
    with pytest.raises(InputError, match=r"could not be loaded: JSON parse error: .*/text. was specified twice"):
        load_records(tmp_path / "lines", "--train-data")
    assert "Failed" not in "".join(capfd.readouterr())  # the library's own lines


# ---- data sets of several configurations


def several(folder: Path, names: tuple[str, ...] = ("sst2", "cola")) -> Path:
    folder = folder / "glue"
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "train.jsonl").write_text(json.dumps({"text": f"of {name}", "label": 1}) + "\n")
    configurations = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train.jsonl\n" for name in names
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configurations}---\n")
    return folder


def test_a_configuration_is_named_behind_the_data_set(tmp_path, monkeypatch):
    folder = several(tmp_path)
    for name in ("sst2", "cola"):
        (record,) = load_records(f"{folder}:{name}", "--train-data")
        assert (record.fields["text"], record.where) == (f"of {name}", f"{folder}:{name}[0]")
    monkeypatch.chdir(tmp_path)
    assert texts_of("glue:cola") == ["of cola"]
    assert absolute("glue:cola") == f"{folder}:cola"  # a run finds it from anywhere
    assert absolute("nyu-mll/glue:cola") == "nyu-mll/glue:cola"
    with pytest.raises(InputError, match=r"several configurations: (sst2, cola|cola, sst2); name one, such as .*glue:"):
        load_records(folder, "--train-data")
    with pytest.raises(InputError, match=r"glue has no configuration 'mnli'; it has (sst2, cola|cola, sst2)"):
        load_records(f"{folder}:mnli", "--train-data")


def test_a_data_set_without_configurations_has_none_to_name(tmp_path):
    datasets.Dataset.from_list([{"text": "a", "label": 1}]).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match="saved is a data set that was saved, which has no configurations"):
        load_records(f"{tmp_path / 'saved'}:sst2", "--train-data")
    (tmp_path / "rows.jsonl").write_text(GOOD)
    with pytest.raises(InputError, match=r"there is no file .*rows\.jsonl:sst2"):
        load_records(f"{tmp_path / 'rows.jsonl'}:sst2", "--train-data")
