"""Imports point one way (docs: the layout of src/zotune), read off the source with `ast`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import zotune

ROOT = Path(zotune.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}  # fmt: skip
# What stands above the training loop.
COMMAND = {"finetune", "replay", "parts", "inference", "commands", "cli", "console"}

# A module or folder, and what it never imports.
FORBIDDEN = {
    "engine": COMMAND | {"train", "data", "config", "journal", "metrics", "plots", "run_folder"},
    "data": COMMAND | {"train", "config", "plots", "run_folder", "journal", "metrics"},
    "train": COMMAND | {"data", "config", "plots", "engine.torch_engine"},
    "estimators": COMMAND | {"train", "data", "config", "journal", "optimizers"},
    "optimizers": COMMAND | {"train", "data", "config", "journal"},
    "objectives": COMMAND | {"train", "data", "config", "journal"},
    "journal": COMMAND | {"train", "data", "config", "metrics"},
    "adapter": COMMAND | {"train", "data", "config", "engine", "journal"},
    "config": COMMAND | {"train", "data", "engine"},
    "config_checks": COMMAND | {"train", "data", "engine"},
    "method": COMMAND | {"train", "data", "engine"},
    "finetune": {"inference", "commands", "cli", "console", "plots"},
    "parts": {"finetune", "train", "inference", "commands", "cli", "console", "plots"},
    "inference": {"finetune", "commands", "cli", "console", "plots"},
    "first_order": COMMAND | {"data", "config", "journal", "plots", "study"},
    "study": {"commands", "cli", "console", "plots", "compare", "sweep"},
    "compare": {"commands", "cli", "console", "plots", "sweep"},
    "sweep": {"commands", "cli", "console", "plots", "compare"},
    "console": {"finetune", "parts", "inference", "commands", "cli", "plots"},
}


def imports_of(path: Path) -> set[str]:
    """Modules of zotune that a file imports anywhere, also inside functions, without the leading `zotune.`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively, which this test does not follow"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    names = {name.removeprefix("zotune.") for name in found if name.startswith("zotune.")}
    return {name for name in names if name in MODULES}


def within(module: str, part: str) -> bool:
    return module == part or module.startswith(part + ".")


@pytest.mark.parametrize("part", FORBIDDEN)
def test_a_layer_never_imports_what_stands_above_it(part):
    files = {name: path for name, path in MODULES.items() if within(name, part)}
    assert files
    for name, path in files.items():
        wrong = {module for module in imports_of(path) for above in FORBIDDEN[part] if within(module, above)}
        assert not wrong, f"{name} imports {', '.join(sorted(wrong))}"


def test_plots_read_run_folders_only():
    assert imports_of(MODULES["plots"]) <= {"run_folder", "metrics", "errors"}


@pytest.mark.parametrize(("module", "importer"), [("plots", "commands"), ("console", "commands"), ("cli", None)])
def test_only_the_commands_import_what_people_see(module, importer):
    importers = {name for name, path in MODULES.items() if module in imports_of(path)}
    assert all(importer and within(name, importer) for name in importers)


def test_the_command_line_is_read_before_pytorch_is_loaded():
    code = "import sys, zotune.cli; zotune.cli.parse(['train', '--seed', '3']); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_every_public_name_leads_to_its_own_object_however_often_it_is_asked_for():
    assert sorted(zotune.__all__) == sorted(zotune._HOMES)
    for name in zotune.__all__ * 2:
        assert getattr(getattr(zotune, name), "__module__", None) == f"zotune.{zotune._HOMES[name]}"
