"""The README's commands and Python run as they stand, and its file table is the truth."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def test_the_shell_commands_run(folder):
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for block in blocks("sh"):
        result = subprocess.run(
            ["sh", "-eu", "-c", block], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        assert "held-out accuracy" in result.stdout
        assert re.search(r"^(great|terrible)$", result.stdout, re.MULTILINE)
    assert (folder / "adapter-at-30" / "adapter_model.safetensors").is_file()
    assert (folder / "demo-run" / "plots" / "training.png").is_file()


def test_the_python_blocks_run_one_after_the_other(folder):
    code = "\n".join(blocks("python"))
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "->" in result.stdout
    assert (folder / "my-run" / "best").is_dir()


def test_the_file_table_names_every_file():
    files = {path.name for path in (ROOT / "src" / "zotune").rglob("*.py")} - {"__init__.py"}
    named = set(re.findall(r"`(\w+\.py)`", README.split("## The files")[1]))
    assert named <= files
    assert files - named <= {"errors.py", "loading.py"}


def test_no_console_example_uses_an_unknown_option():
    from zotune.cli import parse

    for line in "".join(blocks("console")).splitlines():
        command = re.sub(r"\s+#.*", "", line).replace("sh run.sh", "zotune train")
        if command.startswith("zotune") and "run.toml" not in command:
            parse([part.strip('"') for part in re.findall(r'"[^"]*"|\S+', command)[1:]])
