"""A power cut: copies of a disk image that a run is being written to, each mounted and gone on with.

The copy is what has reached the disk, and no more: what the kernel still had in memory is gone, as it is when the power
goes. The file system is ext4 without ordering (`data=writeback`), where a file that was renamed before it was synced
may be empty or hold zeros afterwards.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.processes import Process, run_to_end
from tests.test_train import durable

STEPS, SNAPSHOTS = 150, 5
SIZE_BYTES = 64 * 2**20


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


@contextmanager
def mounted(image: Path, folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    _run("mount", "-o", ",".join(("loop", *options)), image, folder)
    try:
        yield folder
    finally:
        _run("umount", "--lazy", folder)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An image with an empty ext4, where this machine and user may mount one."""
    tools = ("mkfs.ext4", "mount", "umount")
    if sys.platform != "linux" or os.geteuid() != 0 or not all(map(shutil.which, tools)):
        pytest.skip("needs ext4, and a user who may mount")
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    try:
        _run("mkfs.ext4", "-q", image)
        with mounted(image, tmp_path / "trial"):
            pass
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no loop device: {error}")
    return image


def command(model: Path, data: Path, output: Path) -> list[str | Path]:
    return [
        "train", "--model", model, "--train-data", data, "--labels", "terrible", "great", "--invocation", " It was",
        "--num-steps", str(STEPS), "--directions", "1", "--batch-size", "2", "--eval-steps", "20", "--num-threads", "1",
        "--max-eval-samples", "4", "--output-dir", output,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_run_goes_on_to_the_bit_from_what_a_power_cut_leaves(disk, tmp_path, opt_dir, reviews_file):
    whole = tmp_path / "whole"
    assert run_to_end(*command(opt_dir, reviews_file, whole)).returncode == 0
    copies: dict[Path, int] = {}  # and how many lines its journal had by then, the last of them maybe not yet on disk
    with mounted(disk, tmp_path / "mount", "data=writeback", "commit=1") as place:
        process = Process(*command(opt_dir, reviews_file, place / "run"))
        try:
            while process.poll() is None:
                lines = place / "run" / "journal.jsonl"
                steps = lines.read_bytes().count(b"\n") if lines.is_file() else 0
                if steps > len(copies) * STEPS // SNAPSHOTS and len(copies) < SNAPSHOTS:
                    copies[tmp_path / f"copy{len(copies)}.img"] = steps
                    shutil.copyfile(disk, [*copies][-1])
                time.sleep(0.01)
        finally:
            process.wait()
        assert durable(place / "run") == durable(whole)
    assert len(copies) >= SNAPSHOTS - 2
    for copy, steps in copies.items():
        with mounted(copy, tmp_path / "mount") as place:
            run = place / "run"
            assert (run / "journal.jsonl").read_bytes().count(b"\n") >= steps - 1, "a durable step is lost"
            process = run_to_end("resume", run)
            assert process.returncode == 0, (copy.name, process.stderr)
            assert durable(run) == durable(whole), copy.name
            assert not [path for path in run.rglob("*") if path.name.endswith((".new", ".old", ".tmp"))]
