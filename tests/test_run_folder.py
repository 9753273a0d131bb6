"""A run folder belongs to one process at a time, and nothing that is no run is ever taken for one or deleted."""

import json
import os
import shutil
import signal
import stat
import textwrap
import time
from pathlib import Path

import pytest

from tests.processes import Process, run_to_end
from tests.test_checkpoint import flags
from tests.test_train import StopAt
from zotune import InputError, evaluate, mezo_finetune, replay_run, resume
from zotune.config.reading import read_run_config, read_toml
from zotune.run.folder import BEFORE_JOURNAL, RunFolder
from zotune.run.journal import read_journal
from zotune.run.metrics import read_metrics

FOR_EVER = 1_000_000


@pytest.fixture(scope="module")
def options(opt_dir: Path, reviews_file: Path) -> dict:
    return {
        "model": str(opt_dir), "train_data": str(reviews_file), "labels": ("terrible", "great"),
        "invocation": " It was", "num_steps": 2, "batch_size": 2, "directions": 1, "eval_steps": 1000,
        "optimizer": "sgd", "lora_rank": 2, "num_threads": 1, "max_eval_samples": 2,
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(options, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    mezo_finetune(**options, output_dir=str(folder))
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A finished run that a test may spoil."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- processes at once


class Zotune(Process):
    """A zotune of its own."""

    def refusal(self) -> str:
        """The one sentence with which it was refused."""
        assert self.wait() == 2, self.stderr
        assert "Traceback" not in self.stderr
        *_, message = self.stderr.splitlines()
        return message

    def wait_for_steps(self, journal: Path, count: int) -> None:
        give_up = time.monotonic() + 240
        while not (journal.exists() and journal.read_bytes().count(b"\n") > count):
            assert self.poll() is None, self.stderr
            assert time.monotonic() < give_up
            time.sleep(0.01)


@pytest.mark.slow
def test_of_two_that_overwrite_at_once_one_wins_and_a_running_resume_is_not_deleted(options, run, tmp_path):
    in_use = f"zotune: {run} is in use by another zotune process"
    train = ["train", *flags({**options, "num_steps": FOR_EVER}), "--output-dir", str(run), "--overwrite"]
    processes = {seed: Zotune(*train, "--seed", str(seed)) for seed in (7, 8)}
    try:
        while all(process.poll() is None for process in processes.values()):
            time.sleep(0.01)
        (loser,) = [seed for seed, process in processes.items() if process.poll() is not None]
        assert processes[loser].refusal() == in_use
        winner, journal = 15 - loser, run / "journal.jsonl"
        processes[winner].wait_for_steps(journal, 20)
        processes[winner].kill()
        header, entries = read_journal(journal)
        assert (header.seed, read_toml(run / "config.toml").seed) == (winner, winner)

        processes[0] = Zotune("resume", run)
        processes[0].wait_for_steps(journal, len(entries) + 5)
        assert Zotune(*train).refusal() == in_use
        processes[0].wait_for_steps(journal, journal.read_bytes().count(b"\n") + 5)
        processes[0].kill()
        assert read_journal(journal)[1][: len(entries)] == entries
        replay_run(run, tmp_path / "out")
    finally:
        for process in processes.values():
            process.kill()


# ---- beginnings

KILLED = """
    import os, signal
    from zotune import mezo_finetune
    from zotune.run.journal import Journal
    Journal.create = lambda path, header: os.kill(os.getpid(), signal.SIGKILL)
    mezo_finetune(**{options!r}, output_dir={folder!r}, **{more!r})
"""


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.slow
def test_a_run_killed_before_its_journal_is_taken_by_the_next(options, run, tmp_path, overwrite):
    """Also by one that has --overwrite, and also where the killed one overwrote a run itself."""
    folder = run if overwrite else tmp_path / "new"
    script = textwrap.dedent(KILLED).format(options=options, folder=str(folder), more={"overwrite": overwrite})
    assert run_to_end(code=script).returncode == -signal.SIGKILL
    assert {path.name for path in folder.iterdir()} == {"config.toml", ".lock"}
    result = mezo_finetune(**options, output_dir=str(folder), overwrite=overwrite, seed=5)
    assert result.summary["seed"] == 5
    assert not (folder / ".lock").exists()


@pytest.mark.parametrize("names", [
    {"config.toml"}, {"config.toml.new"}, {"config.toml", "journal.jsonl.new"}, {"config.toml", "train_data.jsonl"},
    {"config.toml", "start.safetensors", "start.safetensors.new"}, BEFORE_JOURNAL - {"journal.jsonl"}, {".lock"},
], ids=lambda names: " ".join(sorted(names)))  # fmt: skip
def test_the_beginnings_of_a_run_are_taken(finished, tmp_path, names):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    for name in names:
        (folder.path / name).write_bytes((finished / "config.toml").read_bytes() if name == "config.toml" else b"torn")
    with folder.claim(overwrite=False):
        folder.clear()
    assert not folder.path.exists() or not list(folder.path.iterdir())


def test_a_torn_journal_is_a_beginning_too(options, run):
    """A first line without its end, as older versions could leave it."""
    for path in [path for path in run.iterdir() if path.name not in ("config.toml", "journal.jsonl")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (run / "journal.jsonl").write_bytes((run / "journal.jsonl").read_bytes()[:50])
    mezo_finetune(**options, output_dir=str(run))
    assert len(read_journal(run / "journal.jsonl")[1]) == options["num_steps"]


# ---- what is no run


@pytest.mark.parametrize("files", [
    {"journal.jsonl": b""}, {"journal.jsonl": b'{"date": "1 May", "text": "rain"}\n'}, {"journal.jsonl": b"\0" * 99},
    {"journal.jsonl": b"", "config.toml": b'title = "my site"\n'}, {"config.toml": b'title = "my site"\n'},
    {"config.toml": b"no [toml"}, {"thesis.tex": b"\\documentclass{book}"}, {"config.toml": b"", "thesis.tex": b""},
], ids=lambda files: " ".join(f"{name} {content[:9]!r}" for name, content in files.items()))  # fmt: skip
@pytest.mark.parametrize("overwrite", [False, True])
def test_the_folder_of_somebody_else_is_never_taken(options, tmp_path, files, overwrite):
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=r"holds (files but )?no run"):
        mezo_finetune(**options, output_dir=str(folder), overwrite=overwrite)
    assert contents(folder) == files


def test_a_run_is_not_replaced_without_being_asked_to(options, run):
    before = contents(run)
    with pytest.raises(InputError, match=r"exists; choose another, continue it with `zotune resume .*--overwrite"):
        mezo_finetune(**options, output_dir=str(run))
    assert contents(run) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_link_and_a_mount_point_are_refused(options, run, tmp_path, overwrite):
    (tmp_path / "link").symlink_to(run)
    before = contents(run)
    with pytest.raises(InputError, match="link is a link; name the folder that it leads to"):
        mezo_finetune(**options, output_dir=str(tmp_path / "link"), overwrite=overwrite)
    with pytest.raises(InputError, match="/proc is where a disk is mounted"):
        mezo_finetune(**options, output_dir="/proc", overwrite=overwrite)
    assert contents(run) == before


# ---- refused before anything is deleted


@pytest.mark.parametrize("wrong", [
    {"target_modules": ("no_such_module",)}, {"invocation": " 1" * 200}, {"model": "no/such-model"},
    {"train_data": [{"text": "a", "label": 0, ("extra",): 1}, {"text": "b", "label": 1, ("extra",): 1}]},
    {"noise_blocks": 3}, {"objective": "nll"},
], ids=lambda wrong: next(iter(wrong)))  # fmt: skip
def test_what_is_refused_leaves_the_run_that_it_would_have_replaced(options, run, tmp_path, wrong):
    before = contents(run)
    with pytest.raises(InputError):
        mezo_finetune(**{**options, **wrong}, output_dir=str(run), overwrite=True)
    assert contents(run) == before
    with pytest.raises(InputError):
        mezo_finetune(**{**options, **wrong}, output_dir=str(tmp_path / "made" / "for" / "nothing"))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("last", ["config.toml", "journal.jsonl.deleted"])
def test_what_is_left_of_a_deletion_that_was_cut_short_is_taken_by_the_next_run(options, run, monkeypatch, last):
    real_unlink = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path == run / last:
            raise KeyboardInterrupt
        real_unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(KeyboardInterrupt):
        mezo_finetune(**options, output_dir=str(run), overwrite=True)
    monkeypatch.undo()
    assert not (run / "journal.jsonl").exists()
    mezo_finetune(**options, output_dir=str(run))
    assert not (run / "journal.jsonl.deleted").exists()


# ---- what lies in it


def test_everything_in_a_run_folder_has_the_permissions_of_any_new_file(options, tmp_path):
    before = os.umask(0o027)
    try:
        more = {"estimator": "backprop", "directions": None, "eval_steps": 1, "init_lora_weights": "eva"}
        mezo_finetune(**{**options, **more}, output_dir=str(tmp_path / "run"))
    finally:
        os.umask(before)
    names = {"start.safetensors", "adapter_model.safetensors", "step-000002.safetensors", "summary.json"}
    assert names <= {path.name for path in (tmp_path / "run").rglob("*")}
    for path in (tmp_path / "run").rglob("*"):
        mode = 0o750 if path.is_dir() else 0o640
        assert stat.S_IMODE(path.stat().st_mode) == mode, path
        assert not path.name.endswith((".new", ".old", ".lock"))


def test_leftovers_of_a_crash_do_a_resume_no_harm(options, tmp_path):
    config = {**options, "tuning": "full", "learning_rate": 1e-4, "num_steps": 4, "eval_steps": 2}
    config.pop("lora_rank")
    mezo_finetune(**config, output_dir=str(tmp_path / "whole"))
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        mezo_finetune(**config, output_dir=str(run), callbacks=[StopAt(3)])
    (run / "model").rename(run / "model.old")  # between the two renames
    (run / "model.new").mkdir()
    (run / "best.new").mkdir()
    (run / "best.new" / "torn").write_text("")
    (run / "journal.jsonl.new").write_text("torn")
    (run / "metrics.jsonl.new").write_text("torn")
    resume(run)
    for name in ("model", "best"):
        assert contents(run / name) == contents(tmp_path / "whole" / name)


# ---- what was lost is made again


def without_times(metrics: Path) -> list[tuple]:
    return [(event.event, event.step, event.loss) for event in read_metrics(metrics)]


@pytest.mark.parametrize(
    "lost", ["metrics.jsonl", "best", "adapter", "summary.json", "end of metrics.jsonl", "torn best"]
)
def test_a_resume_makes_again_what_a_finished_run_has_lost(options, tmp_path, lost):
    run, whole = tmp_path / "run", tmp_path / "whole"
    mezo_finetune(**{**options, "num_steps": 5, "eval_steps": 2, "learning_rate": 0.01}, output_dir=str(run))
    shutil.copytree(run, whole)
    if lost == "end of metrics.jsonl":
        lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        (run / "metrics.jsonl").write_bytes(b"".join(lines[:2]) + b"\0" * 100)
    elif lost == "torn best":
        (run / "best" / "adapter_model.safetensors").write_bytes(b"")
    elif (run / lost).is_dir():
        shutil.rmtree(run / lost)
    else:
        (run / lost).unlink()
    resume(run)
    assert without_times(run / "metrics.jsonl") == without_times(whole / "metrics.jsonl")
    for name in ("best", "adapter"):
        assert contents(run / name) == contents(whole / name)
    assert contents(run).keys() == contents(whole).keys()


def test_how_often_a_run_is_looked_at_may_change_without_looking_back(options, tmp_path):
    run = tmp_path / "run"
    mezo_finetune(**{**options, "num_steps": 3, "eval_steps": 3}, output_dir=str(run))
    before = without_times(run / "metrics.jsonl")
    config = run / "config.toml"
    config.write_text(config.read_text().replace("eval_steps = 3", "eval_steps = 1"))
    resume(run)
    assert without_times(run / "metrics.jsonl") == before


def test_a_moved_run_with_records_from_memory_goes_on_and_is_evaluated(options, tmp_path):
    data = [json.loads(line) for line in Path(options["train_data"]).read_text().splitlines()]
    mezo_finetune(**{**options, "train_data": data, "eval_data": data[:4]}, output_dir=str(tmp_path / "run"))
    (tmp_path / "run").rename(tmp_path / "moved")
    assert evaluate(adapter=tmp_path / "moved" / "adapter").num_examples == 4
    (tmp_path / "moved" / "adapter" / "adapter_model.safetensors").unlink()
    assert (resume(tmp_path / "moved").adapter / "adapter_model.safetensors").exists()


def test_a_folder_never_decides_that_code_is_run(run):
    config = run / "config.toml"
    config.write_text(config.read_text().replace("trust_remote_code = false", "trust_remote_code = true"))
    assert "trust_remote_code = true" in config.read_text()
    assert not read_run_config(config).trust_remote_code


def test_an_adapter_outside_its_run_is_not_evaluated_on_the_demo(run, tmp_path):
    shutil.copytree(run / "adapter", tmp_path / "elsewhere" / "adapter")
    with pytest.raises(InputError, match=r"--eval-data: the adapter .* lies outside its run"):
        evaluate(adapter=tmp_path / "elsewhere" / "adapter")


def test_a_run_without_its_settings_is_still_replayed(options, run, tmp_path):
    adapter = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    (run / "config.toml").unlink()
    with pytest.raises(InputError, match=r"has lost its config.toml, .* `zotune replay .*` still gives the adapter"):
        resume(run)
    replay_run(run, tmp_path / "replayed")
    assert (tmp_path / "replayed" / "adapter_model.safetensors").read_bytes() == adapter
