"""Today's code computes what zotune computed before, to the bit, and goes on with runs of an older version.

The last bits of a forward pass are the machine's: elsewhere than where golden.py recorded, numbers are compared to a
tolerance (slopes divide the rounding of a loss, 1e-6, by eps). What a journal replays to is the same bits everywhere.
"""

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import golden
from zotune import mezo_finetune, replay_run, resume

pytestmark = pytest.mark.slow
RUNS = json.loads((golden.FOLDER / "runs.json").read_text())
SAME_MACHINE = RUNS.pop("fingerprint") == golden.fingerprint()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    golden.make_places(folder)
    return folder


def assert_same(run: dict[str, Any], before: dict[str, Any]) -> None:
    if SAME_MACHINE:
        assert json.loads(json.dumps(run)) == before
    else:
        assert_close(run, before)


def assert_close(run: dict[str, Any], before: dict[str, Any]) -> None:
    assert run["peft"] == before["peft"]
    for name in ("journal", "evaluations"):
        for now, then in zip(run[name], before[name], strict=True):
            np.testing.assert_allclose(flat(now), flat(then), rtol=2e-2, atol=2e-3)


def flat(values: list[Any]) -> list[float]:
    return [number for value in values for number in (flat(value) if isinstance(value, list) else [value or 0.0])]


@pytest.mark.parametrize("row", golden.ROWS)
def test_a_run_has_the_bits_that_it_had(row, root, tmp_path):
    mezo_finetune(**golden.settings_of(root, row), output_dir=str(tmp_path / "run"))
    assert_same(golden.record(tmp_path / "run"), RUNS[row])


def stopped_run(row: str, root: Path, folder: Path) -> Path:
    """A run folder of before, made to find its model and data under `root`."""
    before = (golden.FOLDER / "stopped" / "ROOT").read_text()
    shutil.copytree(golden.FOLDER / "stopped" / row, folder)
    config = folder / "config.toml"
    config.write_text(config.read_text().replace(before, str(root)))
    first, _, rest = (folder / "journal.jsonl").read_text().partition("\n")
    header = json.loads(first.replace(before, str(root)))
    del header["crc32"]
    text = json.dumps(header)
    (folder / "journal.jsonl").write_text(f'{text[:-1]}, "crc32": {zlib.crc32(text.encode())}}}\n{rest}')
    return folder


@pytest.mark.parametrize("row", golden.STOPPED)
def test_a_run_of_before_resumes_to_the_same_end(row, root, tmp_path):
    run = stopped_run(row, root, tmp_path / "run")
    resume(run)
    assert_close(golden.record(run), RUNS["ended"][row])


@pytest.mark.parametrize("row", golden.STOPPED)
def test_a_run_of_before_replays_to_the_same_bits(row, root, tmp_path):
    run = stopped_run(row, root, tmp_path / "run")
    assert replay_run(run, tmp_path / "replayed") == golden.STOP_AT
    (weights,) = (tmp_path / "replayed").glob("*.safetensors")
    assert golden.tensors_digest(weights) == RUNS["replayed"][row]
