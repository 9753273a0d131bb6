"""Some 300 command lines that are refused, each with exit code 2 and one sentence, and nothing left behind.

The table is in refusals.toml. Every option is also given values of the wrong type by the tables of options themselves,
so that a new one is covered as soon as it is there.
"""

import json
import os
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from string import Template
from typing import Any, get_args, get_type_hints

import pytest

from tests.conftest import CONFIGS
from zotune import mezo_finetune
from zotune.cli import COMMANDS, main

TABLE = tomllib.loads(Path(__file__).with_name("refusals.toml").read_text(encoding="utf-8"))
KINDS = [name for name, value in TABLE.items() if isinstance(value, list)]
CASES = [(kind, *case) for kind in KINDS for case in TABLE[kind]]
LONG, DIGITS, HALF = "x" * 300, "9" * 5000, "\udcff"


@pytest.fixture(scope="module")
def places(model_dirs: dict[str, Path], reviews_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the placeholders of the table stand for."""
    bad = tmp_path_factory.mktemp("refused")
    for name, content in TABLE["files_of"].items():
        (bad / name).parent.mkdir(exist_ok=True)
        (bad / name).write_text(content, encoding="utf-8")
    (bad / "deep.toml").write_text("a = " + "[" * 100_000)
    (bad / "long_number.toml").write_text(f"num_steps = {DIGITS}\n")
    (bad / "latin1.toml").write_bytes("task = 'é'\n".encode("latin-1"))
    many = list(range(1, 101))
    (bad / "grid_large.toml").write_text(
        f"budget = {{ steps = 4 }}\n[grid]\nepsilon = {many}\nseed = {many}\nlora_rank = {many}\n"
    )
    whole: dict[str, Any] = CONFIGS["opt"]().to_dict() | {"architectures": ["OPTForCausalLM"]}
    wrong_configs: dict[str, dict[str, Any]] = {
        "text_length": {"max_position_embeddings": "512"}, "text_width": {"hidden_size": "16"},
        "negative": {"vocab_size": -5},
    }  # fmt: skip
    for name, wrong in wrong_configs.items():
        (bad / f"config_{name}").mkdir()
        (bad / f"config_{name}" / "config.json").write_text(json.dumps(whole | wrong))
    (bad / "config_deep").mkdir()
    (bad / "config_deep" / "config.json").write_text('{"a": ' * 100_000)
    os.mkfifo(bad / "pipe")
    (bad / "link").symlink_to(bad / "no_run")
    (bad / "dangling").symlink_to(bad / "nothing")
    run = tmp_path_factory.mktemp("runs") / "finished"
    mezo_finetune(
        str(model_dirs["opt"]), str(reviews_file), task="demo", num_steps=4, batch_size=2, num_threads=1,
        output_dir=str(run),
    )  # fmt: skip
    train = f"train --model {model_dirs['opt']} --num-steps 2 --batch-size 2 --output-dir run"
    return {
        "OPT": str(model_dirs["opt"]), "REVIEWS": str(reviews_file), "BAD": str(bad), "RUN": str(run), "LONG": LONG,
        "BEGINNING": LONG[:80], "DIGITS": DIGITS, "HALF": HALF, "NUL": "\0", "TRAIN": train,
        "GOOD": f"{train} --task demo --train-data {reviews_file}",
    }  # fmt: skip


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In a folder of its own, in which nothing may be left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    yield
    assert list(tmp_path.iterdir()) == []


def words_of(line: str, places: dict[str, str]) -> list[str]:
    """The words of a command line; what stands for a word is put in after they are told apart."""
    words = []
    for word in shlex.split(line):
        filled = Template(word).safe_substitute(places)
        words += shlex.split(filled) if word in ("$GOOD", "$TRAIN") else [filled]
    return words


def said_by(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command line that is refused says: its own sentence, or the parser's, out of its box."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    captured = capsys.readouterr()
    assert stop.value.code == 2, captured.err
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    if last.startswith("zotune: "):
        return last
    assert "Traceback" not in captured.err
    return " ".join(captured.err.replace("│", " ").split())


@pytest.mark.parametrize(("kind", "case"), [(kind, case) for kind, *case in CASES], ids=range(len(CASES)))
def test_refused_with_one_sentence_and_nothing_left_behind(kind, case, places, capsys):
    line, *pieces = case
    said = said_by(words_of(line, places), capsys)
    for piece in pieces:
        assert Template(piece).safe_substitute(places) in said


# ---- values of the wrong type, from the tables of options themselves

NEEDED = {
    "resume": ["nothing"], "replay": ["nothing", "--output-dir", "out"], "plot": ["nothing"],
    "compare": ["nothing.toml"], "sweep": ["nothing.toml"], "card": ["nothing"],
    "merge": ["nothing", "--output-dir", "out"], "export": ["nothing", "--gguf", "out.gguf"],
}  # fmt: skip
WRONG = {
    int: ("many", "1" + "0" * 30, HALF),
    float: ("nan", "1e300", HALF),
    str: (HALF,),
    tuple: (HALF,),
    "choice": ("no-such-choice", HALF),
    "path": ("", "a\0b", LONG, HALF),
}
PATHS = ("model", "adapter", "train_data", "eval_data", "output_dir", "output_file", "data")


def options_of(command: str) -> Iterator[tuple[str, str, str]]:
    """(command, option, wrong value) for every option that takes a value."""
    from zotune.commands.options import _with_tables

    file, name, _ = COMMANDS[command]
    made = getattr(import_module(f"zotune.commands.{file}"), name)
    if "tables" in made.__dataclass_fields__:
        made = _with_tables(made)
    hints = get_type_hints(made)
    for field in fields(made):
        if field.name == "tables" or "Positional" in str(field.type):
            continue
        if hasattr(hints[field.name], "__dataclass_fields__"):
            if command != "train":
                continue  # it has no use for the settings of methods
            for key, hint in get_type_hints(hints[field.name]).items():
                for value in WRONG[type_of(key, hint)]:
                    yield command, f"--{field.name}.{key}".replace("_", "-"), value
        elif hints[field.name] is not bool:
            for value in WRONG[type_of(field.name, hints[field.name])]:
                yield command, f"--{field.name.replace('_', '-')}", value


def type_of(name: str, hint: Any) -> Any:
    kind = next(kind for kind in (*get_args(hint), hint) if kind is not type(None))
    if name in PATHS:
        return "path"
    return kind if kind in (int, float, str) else tuple if str(kind).startswith("tuple") else "choice"


@pytest.mark.slow
@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "profile"])  # it has those of train
def test_every_option_refuses_values_of_the_wrong_type(command, capsys):
    for name, option, value in options_of(command):
        before = NEEDED.get(name, [])
        words = [name, *before, option, value] if option not in before else [name, *before[:-1], value]
        said = said_by(words, capsys)
        shown = option[2:].replace("-", "_")
        assert option in said or shown in said, f"{words[:3]}: {said}"


# ---- real processes

ZOTUNE = Path(sys.executable).with_name("zotune")
FRESH = [
    ("train --num-threads 5000", "--num-threads must be at most"),
    ("train --lora-rank 10000000", "--lora-rank must be at most 65,536"),
    ("train $BAD/pipe", "it is no file"),
    ("predict --temperature=1e-300x", "--temperature"),
    ("compare $BAD/deep.toml", "nested too deeply"),
    ("train --output-dir 'run[/bold]' --epsilon nan", "--epsilon must be"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("line", "piece"), FRESH)
def test_a_fresh_process_refuses_within_3_seconds(line, piece, places):
    began = time.monotonic()
    done = subprocess.run([ZOTUNE, *words_of(line, places)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert piece in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 3


@pytest.mark.slow
@pytest.mark.parametrize("line", ["tasks | head -1 > /dev/null", "tasks >&-", "--help | true", "tasks <&- >&- 2>&-"])
def test_a_reader_that_has_gone_is_no_error(line):
    done = subprocess.run(["sh", "-c", f"'{ZOTUNE}' {line}"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_full_disk_under_standard_output_is_said():
    done = subprocess.run(["sh", "-c", f"'{ZOTUNE}' tasks > /dev/full"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "zotune: cannot write to standard output: No space left on device\n"


@pytest.mark.slow
def test_a_standard_input_that_is_closed_has_no_records():
    done = subprocess.run(["sh", "-c", f"'{ZOTUNE}' predict <&-"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--data" in done.stderr
    assert "Traceback" not in done.stderr
