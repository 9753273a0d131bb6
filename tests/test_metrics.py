"""metrics.jsonl: evaluations are on disk at once, and what a power cut leaves at its end does no harm."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from zotune.errors import InputError
from zotune.run.metrics import EvalEvent, MetricsFile, StepEvent, read_metrics, write_json

EVENTS: list[StepEvent | EvalEvent] = [
    EvalEvent(0, "eval", 0.5, 0.7, 10, 0.1),
    StepEvent(1, 0.7, 1e-3, (0.5, -0.25), 0.2, 3, 40, 50),
    StepEvent(2, 0.6, 1e-3, (), 0.2, 3, 40, 50),
    EvalEvent(2, "eval", None, 0.6, 10, 0.1),
]
TORN = {
    "a line cut short": b'{"event": "eval", "st',
    "zeros": b"\0" * 4096,
    "zeros with ends of lines": b"\0\0\n\0\0\n",
    "a line cut short, then zeros": b'{"event": "eval", "st' + b"\0" * 99 + b"\n",
    "another file's bytes": bytes(range(256)) * 3,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    for event in EVENTS:
        file.append(event)
    file.close()
    return path


def test_events_read_back(path):
    assert read_metrics(path) == EVENTS


@pytest.mark.parametrize("torn", TORN.values(), ids=TORN)
def test_what_is_torn_at_the_end_is_left_out_with_a_warning_and_gone_when_reopened(path, torn, caplog):
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert read_metrics(path) == EVENTS
    assert f"{path}: line 5 was cut short; dropped" in caplog.text
    file = MetricsFile(path, keep_until_step=2)
    file.append(EVENTS[1])
    file.close()
    assert read_metrics(path) == [*EVENTS, EVENTS[1]]
    assert path.read_bytes().startswith(whole)


@pytest.mark.parametrize("torn", [torn for torn in TORN.values() if torn.count(b"\n") < 3])
def test_what_is_torn_in_the_middle_is_refused_with_its_line(path, torn):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + torn + b"".join(lines[2:]))
    with pytest.raises(InputError, match=r"metrics.jsonl: line 3 is damaged"):
        read_metrics(path)


@pytest.mark.parametrize("line", ["oops", "[]", '{"event": "step", "step": 3}', "[" * 10**5, '{"event": "eval"}'])
def test_text_that_is_no_event_is_refused_at_the_end_too(path, line):
    """No power cut writes it."""
    with path.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(InputError, match=r"metrics.jsonl: line 5 is damaged"):
        read_metrics(path)


def test_reopened_at_a_step_it_forgets_what_came_after(path):
    MetricsFile(path, keep_until_step=1).close()
    assert read_metrics(path) == EVENTS[:2]


def test_evaluations_are_brought_to_the_disk_and_steps_are_not(tmp_path, monkeypatch):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    synced: list[int] = []
    real_sync = os.fsync

    def sync(opened: int) -> None:
        synced.append(opened)
        real_sync(opened)

    monkeypatch.setattr(os, "fsync", sync)
    counts = []
    for number, event in enumerate(EVENTS, start=1):
        file.append(event)
        counts.append(len(synced))
        assert read_metrics(tmp_path / "metrics.jsonl") == EVENTS[:number]
    file.close()
    assert counts == [1, 1, 1, 2]


def test_a_full_disk_leaves_whole_lines_and_the_summary_that_was_there(tmp_path):
    """A file size limit makes the kernel take part of a line and refuse the rest, as a full disk does."""
    write_json(tmp_path / "summary.json", {"steps": 1})
    script = textwrap.dedent(f"""
        import resource, signal
        from pathlib import Path
        from tests.test_metrics import EVENTS
        from zotune.run.metrics import MetricsFile, write_json
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        folder = Path({str(tmp_path)!r})
        file = MetricsFile(folder / "metrics.jsonl")
        file.append(EVENTS[0])
        resource.setrlimit(resource.RLIMIT_FSIZE, (130, 130))
        for write in (lambda: file.append(EVENTS[1]), lambda: write_json(folder / "summary.json", {{"a": "b" * 200}})):
            try:
                write()
            except OSError as error:
                print(error.strerror, error.filename)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"File too large {tmp_path / n}" for n in ("metrics.jsonl", "summary.json")]
    assert read_metrics(tmp_path / "metrics.jsonl") == EVENTS[:1]
    assert json.loads((tmp_path / "summary.json").read_text()) == {"steps": 1}
