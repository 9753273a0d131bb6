"""`zotune init` looks at data and writes settings that train on them, whatever their fields are called."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REVIEWS
from zotune import InputError
from zotune.assemble.data import load_data
from zotune.cli import main
from zotune.config.reading import read_toml
from zotune.tools.first_settings import first_settings

TALK = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
PAIRS = [("good day", "guten Tag"), ("the cat sleeps", "die Katze"), ("it rains", "es regnet"), ("a dog", "ein Hund")]
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "numbers as labels": (REVIEWS, {"labels": ("no", "yes"), "invocation": "\nAnswer:", "fields": ()}),
    "names as labels": (
        [{"body": f"{review['text']}.", "stars": ("bad", "very_good")[review["label"]]} for review in REVIEWS],
        {"labels": ("bad=bad", "very_good=very good"), "fields": ("text=body", "label=stars")},
    ),
    "numbers that do not begin at 0": (
        [{"text": review["text"], "label": review["label"] * 2 + 1} for review in REVIEWS],
        {"labels": ("1=A", "3=B")},
    ),
    "two texts and a label": (
        [{"premise": f"{review['text']} one", "hypothesis": review["text"], "label": review["label"]}
         for review in REVIEWS],
        {"template": "{premise}\n{hypothesis}", "labels": ("no", "yes")},
    ),
    "chats": ([{"messages": TALK}] * 4, {"task": "chat"}),
    "two answers": ([{"prompt": "a", "chosen": f"{i}", "rejected": "c"} for i in range(4)], {"task": "preference"}),
    "prompts": ([{"prompt": a, "completion": b} for a, b in PAIRS], {"task": "completion"}),
    "two texts": (
        [{"source": a, "target": b} for a, b in PAIRS],
        {"task": "completion", "fields": ("prompt=source", "completion=target")},
    ),
    "one text": ([{"line": a} for a, _ in PAIRS], {"task": "lm", "fields": ("text=line",)}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_settings_say_what_is_in_the_data(case, tmp_path):
    rows, wanted = CASES[case]
    data, file = tmp_path / "data.jsonl", tmp_path / "zotune.toml"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file.write_text(first_settings(str(data), "demo"))
    config = read_toml(file)
    assert {name: getattr(config, name) for name in wanted} == wanted
    assert (config.model, config.train_data) == ("demo", str(data))
    assert len(load_data(config).train) > 0


def test_what_init_writes_is_trained(opt_dir, reviews_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["init", str(reviews_file), "--model", str(opt_dir)])
    assert "zotune train zotune.toml" in capsys.readouterr().out
    words = ["--num-steps", "2", "--output-dir", "run", "--batch-size", "4", "--directions", "1", "--num-threads", "1"]
    main(["train", "zotune.toml", "--estimator", "one_sided", *words])
    assert (Path("run") / "adapter").is_dir()
    with pytest.raises(SystemExit) as refused:
        main(["init", str(reviews_file)])
    assert refused.value.code == 2
    assert "--output: zotune.toml is there" in capsys.readouterr().err


def test_data_without_texts_are_refused(tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"x": 1.5, "y": [2]}\n')
    with pytest.raises(InputError, match="no field of the records holds texts; they have x, y"):
        first_settings(str(data), "demo")
