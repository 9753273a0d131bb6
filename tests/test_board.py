"""The board shows what is in run folders, also while they are written, over HTTP on this machine; it writes nothing."""

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.conftest import REVIEWS
from zotune import mezo_finetune
from zotune.board import reading
from zotune.board.reading import Runs
from zotune.board.server import open_board
from zotune.cli import main
from zotune.errors import InputError

Ask = Callable[..., Any]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def runs(opt_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("output")
    for name, steps in (("one", 4), ("study/two", 2)):
        mezo_finetune(
            opt_dir, REVIEWS, labels=("terrible", "great"), invocation=" It was", estimator="one_sided",
            num_steps=steps, batch_size=2, directions=2, eval_steps=2, num_threads=1, output_dir=str(folder / name),
        )  # fmt: skip
    (folder / "study" / "notes.txt").write_text("no run")
    return folder


@pytest.fixture
def address(runs: Path) -> Iterator[str]:
    server = open_board(Runs([runs]), 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def ask(address: str) -> Ask:
    def asked(path: str, **headers: str) -> Any:
        with urlopen(Request(address + path, headers=headers), timeout=20) as answer:
            content = answer.read()
            return json.loads(content) if "json" in answer.headers["Content-Type"] else content.decode()

    return asked


def test_every_run_below_the_folder_is_listed_with_its_settings(ask, runs):
    found = {run["name"]: run for run in ask("/api/runs")}
    assert found.keys() == {"one", "study/two"}
    assert (found["one"]["step"], found["one"]["num_steps"], found["one"]["state"]) == (4, 4, "finished")
    assert found["one"]["settings"]["adam.beta1"] == 0.9
    summary = json.loads((runs / "one" / "summary.json").read_text())
    assert found["one"]["last"]["accuracy"] == summary["final"]["accuracy"]


def test_curves_are_those_in_the_metrics(ask, runs):
    curves = ask("/api/curves?run=study/two")
    lines = [json.loads(line) for line in (runs / "study" / "two" / "metrics.jsonl").read_text().splitlines()]
    steps = [(line["step"], line["loss"]) for line in lines if line["event"] == "step"]
    assert [(step["step"], step["loss"]) for step in curves["steps"]] == steps
    assert [event["step"] for event in curves["evaluations"]] == [0, 2]
    assert ask("/api/samples?run=one") == []


def test_the_page_needs_nothing_from_elsewhere(ask):
    page = ask("/")
    assert "<title>zotune board</title>" in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_draws_the_runs_and_sets_their_settings_side_by_side(address, tmp_path):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    drawn = subprocess.run(
        [str(CHROMIUM), *flags, f"--user-data-dir={tmp_path}", "--virtual-time-budget=5000", "--dump-dom", address],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    page = drawn.partition("<script>")[0]
    for shown in (
        "study/two",
        "finished, step 4 of 4",
        "Training loss",
        "Evaluation accuracy",
        "<td>learning_rate</td>",
    ):
        assert shown in page, shown
    curves = [curve.split() for curve in re.findall(r'<polyline points="([^"]*)"', page)]
    assert {len(curve) for curve in curves} >= {2, 3, 4}  # evaluations at 0, 2 and 4, and as many steps as there were


def test_nothing_else_is_served_and_nobody_elsewhere_is_answered(ask):
    for path, headers, code in (
        ("/api/curves?run=../../etc", {}, 404), ("/etc/passwd", {}, 404), ("/api/curves?run=", {}, 404),
        ("/api/runs", {"Host": "example.org"}, 403),
    ):  # fmt: skip
        with pytest.raises(HTTPError) as refused:
            ask(path, **headers)
        assert refused.value.code == code
        refused.value.close()


def test_looking_changes_no_file(ask, runs):
    def state() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in runs.rglob("*")}

    before = state()
    for path in ("/", "/api/runs", "/api/curves?run=one", "/api/samples?run=one"):
        ask(path)
    assert state() == before


def test_a_run_that_is_being_written_is_followed(tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    (run / "journal.jsonl").write_text("")
    (run / "config.toml").write_text("num_steps = 9\nlearning_rate = inf\n")
    board = Runs([tmp_path])
    assert board.listed()[0]["step"] == 0
    line = '{"event": "step", "step": %d, "loss": %s, "learning_rate": 0.1}\n'
    with (run / "metrics.jsonl").open("a") as file:
        for step, loss, seen in ((1, "0.5", 1), (2, "NaN", 2)):
            whole = line % (step, loss)
            file.write(whole[:20])
            file.flush()
            assert board.listed()[0]["step"] == step - 1  # half a line is none
            file.write(whole[20:])
            file.flush()
            (listed,) = board.listed()
            assert (listed["step"], listed["state"], listed["settings"]) == (seen, "running", {"num_steps": 9})
    curves = board.curves("run")
    assert curves is not None
    assert [step["loss"] for step in curves["steps"]] == [0.5, None]  # a browser reads no NaN
    (run / "metrics.jsonl").write_text(line % (1, "0.25"))  # a resume has cut it back
    curves = board.curves("run")
    assert curves is not None
    assert [step["loss"] for step in curves["steps"]] == [0.25]
    monkeypatch.setattr(reading, "STILL_S", -1)
    assert board.listed()[0]["state"] == "stopped"


def test_what_cannot_be_shown_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["board", str(tmp_path / "nowhere")])
    assert stop.value.code == 2
    assert "there is no folder" in capsys.readouterr().err
    server = open_board(Runs([tmp_path]), 0)
    with pytest.raises(InputError, match="cannot listen on"):
        open_board(Runs([tmp_path]), server.server_port)
    server.server_close()
