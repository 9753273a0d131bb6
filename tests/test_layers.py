"""Imports point one way, down the levels that docs/architecture.md lists; read off the source with `ast`."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import zotune

ROOT = Path(zotune.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}  # fmt: skip
del MODULES["__init__"]  # it names what is public, and imports nothing before it is asked for


def imports_of(path: Path) -> set[str]:
    """Modules of zotune that a file imports anywhere, also inside functions and for types, without `zotune.`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively, which this test does not follow"
            for alias in node.names:  # a module of a folder, or a name of a module
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner.removeprefix("zotune.") in MODULES else str(node.module))
    names = {name.removeprefix("zotune.") for name in found if name.startswith("zotune.")}
    return {name for name in names if name in MODULES}


GRAPH = {name: imports_of(path) - {name} for name, path in MODULES.items()}


def levels() -> list[list[str]]:
    """The page's list, from top to bottom."""
    found = re.search(r"<!-- levels -->\n+```\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found, f"{PAGE} has no list of levels"
    return [[name.strip() for name in line.split(",")] for line in found[1].splitlines() if line.strip()]


def level_of(module: str) -> int:
    (level,) = [
        index
        for index, names in enumerate(levels())
        if any(module == name or module.startswith(name + ".") for name in names)
    ]
    return level


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_what_stands_below_it_and_its_own_folder(module):
    for imported in GRAPH[module]:
        same_folder = imported.partition(".")[0] == module.partition(".")[0]
        assert same_folder or level_of(imported) > level_of(module), f"{module} imports {imported}"


def test_there_is_no_circle_not_even_for_types():
    order = TopologicalSorter(GRAPH)
    try:
        order.prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("name", ["torch", "plain", "sglang", "ray"])
def test_nothing_outside_an_engines_own_folder_decides_by_its_name(name):
    """A comparison with the name of an engine; that a default is `torch` is another thing."""
    pattern = re.compile(rf"""(engine\s*(==|!=|in)\s*[("']*{name})|(["']{name}["']\s*(==|!=)\s*\S*engine)""")
    for module, path in MODULES.items():
        if not module.startswith("engine"):
            assert not pattern.search(path.read_text(encoding="utf-8")), module


def test_plots_read_run_folders_only():
    assert GRAPH["run.plots"] <= {"run.folder", "run.metrics", "errors", "files"}


def loaded_by(statement: str) -> set[str]:
    code = f"import sys, zotune.cli\n{statement}\nprint(*(name for name in sys.modules if '.' not in name))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    return set(printed.splitlines()[-1].split())


def test_a_command_line_is_read_before_pytorch_is_loaded():
    assert "torch" not in loaded_by("zotune.cli.parse(['train', '--seed', '3', '--adam.beta1', '0.8'])")


@pytest.mark.parametrize("words", [["tasks"], ["--version"], ["--help"], ["train", "--help"]])
def test_what_needs_no_model_loads_no_library_for_one(words):
    statement = f"try: zotune.cli.main({words!r})\nexcept SystemExit: pass"
    assert not {"torch", "transformers", "datasets"} & loaded_by(statement)


def test_every_public_name_leads_to_its_own_object_however_often_it_is_asked_for():
    assert sorted(zotune.__all__) == sorted(zotune._HOMES)
    for name in zotune.__all__ * 2:
        assert getattr(getattr(zotune, name), "__module__", None) == f"zotune.{zotune._HOMES[name]}"
