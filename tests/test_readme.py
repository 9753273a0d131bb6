"""README.md: its commands and Python run as they stand, its figures are those that were kept, and it stays short."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import ROOT, blocks, commands
from tests.processes import run_to_end

README = ROOT / "README.md"
QUICK_START = ROOT / "docs" / "quick_start.md"  # goes on with the run that README.md makes
BIN = Path(sys.executable).parent
MAX_WORDS = 700  # what a newcomer reads in a minute or two, code and tables counted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


@pytest.mark.slow
def test_the_shell_commands_run(folder):
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    printed = ""
    for block in blocks(README, "sh") + blocks(QUICK_START, "sh"):
        result = subprocess.run(
            ["sh", "-eu", "-c", block], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        printed += result.stdout
    assert "held-out accuracy" in printed
    assert re.findall(r"^(great|terrible)$", printed, re.MULTILINE) == ["great", "terrible"]
    assert (folder / "demo-run" / "plots" / "training.png").is_file()
    assert (folder / "adapter-at-10" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_the_python_blocks_run_one_after_the_other(folder):
    code = "\n".join(blocks(README, "python"))
    result = run_to_end(code=code, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "->" in result.stdout
    assert (folder / "my-run" / "best").is_dir()


def test_no_example_uses_an_unknown_option():
    from zotune.cli import parse

    lines = list(commands(README))
    assert lines
    for line in lines:
        parse(line)


def test_it_is_short():
    assert len(README.read_text(encoding="utf-8").split()) <= MAX_WORDS


def test_the_figures_are_those_that_were_kept(tmp_path):
    page, picture = tmp_path / "README.md", tmp_path / "accuracy.png"
    page.write_text(README.read_text(encoding="utf-8"), encoding="utf-8")
    script = [sys.executable, str(ROOT / "runs" / "readme_picture.py"), "--page", str(page), "--picture", str(picture)]
    subprocess.run(script, check=True, capture_output=True)
    assert page.read_text(encoding="utf-8") == README.read_text(encoding="utf-8")
    assert picture.read_bytes().startswith(b"\x89PNG")
    (shown,) = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README.read_text(encoding="utf-8"))
    assert (ROOT / shown).is_file()
