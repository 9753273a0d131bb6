"""A run folder that may be read and not written: what looks at it works, what would write into it says so."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import run_to_end
from zotune import mezo_finetune


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, opt_dir: Path) -> Iterator[Path]:
    """A run that was stopped, on a mount that takes no writes."""
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("needs a user who may mount")
    place = tmp_path_factory.mktemp("read_only")
    mezo_finetune(
        str(opt_dir), [{"text": f"a film {n}", "label": n % 2} for n in range(8)], labels=["bad", "good"],
        invocation=" It was", num_steps=2, batch_size=2, num_threads=1, output_dir=str(place / "written" / "run"),
    )  # fmt: skip
    (place / "mount").mkdir()
    try:
        for command in (["--bind", place / "written"], ["-o", "remount,ro,bind"]):
            subprocess.run(["mount", *command, place / "mount"], check=True, capture_output=True)
        yield place / "mount" / "run"
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no mount: {error.stderr}")
    finally:
        subprocess.run(["umount", place / "mount"], check=False, capture_output=True)


@pytest.mark.slow
def test_what_only_looks_at_a_run_works(run, tmp_path):
    for command in (
        ["evaluate", "--adapter", run / "adapter", "--num-threads", "1"],
        ["predict", "--adapter", run / "adapter", "--data", run / "train_data.jsonl", "--num-threads", "1"],
        ["replay", run, "--output-dir", tmp_path / "replayed"],
        ["plot", run, "--output-dir", tmp_path],
    ):
        process = run_to_end(*command, cwd=tmp_path)
        assert process.returncode == 0, process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", ["resume", "replay", "plot"])
def test_what_would_write_into_it_says_so_in_one_sentence(run, command, tmp_path):
    more = ["--output-dir", run / "again"] if command == "replay" else []
    process = run_to_end(command, run, *more, cwd=tmp_path)
    assert process.returncode in (1, 2)
    assert "Traceback" not in process.stderr
    assert process.stderr.strip().splitlines()[-1].startswith("zotune: ")
    assert "Read-only file system" in process.stderr or "is not a folder that can be written to" in process.stderr
