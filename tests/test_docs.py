"""The pages of docs/: the site builds without a warning, and examples, flags, names of files and levels are today's."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

import zotune
from tests.pages import ROOT, blocks, commands
from zotune.cli import COMMANDS, parse
from zotune.config.fields import Fields
from zotune.config.reading import read_toml
from zotune.config.tables import ENGINE_TABLES, METHOD_TABLES

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TODAY = [page for page in PAGES if page.name not in ("decisions.md", "changelog.md")]  # those two tell of earlier days
SOURCES = sorted((ROOT / "src" / "zotune").rglob("*.py"))
# Flags of other programs that pages name: test.sh, mkdocs, and a server of SGLang.
FOREIGN = {
    "--admin-api-key", "--all", "--fast", "--strict", "--attention-backend", "--disable-cuda-graph", "--enable-lora",
    "--generate", "--grammar-backend", "--lora", "--logdir", "--lora-backend", "--lora-paths", "--max-loras-per-batch",
    "--model-path", "--model_args", "--no-deps", "--sampling-backend",
}  # fmt: skip
ENGINE_FLAGS = tuple(f"--{name}." for name in ENGINE_TABLES)
NO_NETWORK = """
import socket


def refuse(*address):
    raise AssertionError(f"a connection was opened: {address}")


socket.socket.connect = socket.socket.connect_ex = refuse
"""
needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None,
    reason='needs pip install "zotune[docs]"',
)


def build(config: Path, site: Path) -> "subprocess.CompletedProcess[str]":
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(config),
        "--site-dir",
        str(site),
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    result = build(ROOT / "mkdocs.yml", folder)
    assert result.returncode == 0, result.stderr
    return folder


def known_flags() -> set[str]:
    """Every flag that some command takes, as it is written on a command line."""
    names = {"help", "version", "config"}
    for file, name, _ in COMMANDS.values():
        names |= {field.name for field in fields(getattr(import_module(f"zotune.commands.{file}"), name))}
    names |= {f"{table}.{name}" for table, settings in METHOD_TABLES.items() for name in settings}
    return {f"--{name.replace('_', '-')}" for name in names - {"tables"}}


@needs_mkdocs
@pytest.mark.slow
def test_the_site_has_every_setting_every_command_and_every_public_name(site):
    settings = (site / "settings.html").read_text(encoding="utf-8")
    for flag in [f"--{field.name.replace('_', '-')}" for field in fields(Fields) if field.name != "tables"]:
        assert f"<code>{flag}</code>" in settings
    for table, names in METHOD_TABLES.items():
        for name in names:
            assert f"<code>--{table}.{name}</code>".replace("_", "-") in settings
    text = (site / "commands.html").read_text(encoding="utf-8")
    assert all(f"zotune {name}" in text for name in COMMANDS)
    text = (site / "api.html").read_text(encoding="utf-8")
    assert all(f'id="zotune.{name}"' in text for name in zotune.__all__)


@needs_mkdocs
@pytest.mark.slow
def test_the_home_page_is_the_readme_and_its_picture_is_there(site):
    text = (site / "index.html").read_text(encoding="utf-8")
    (picture,) = re.findall(r'<img [^>]*src="([^"]+)"', text)
    assert (site / picture).is_file()
    assert "quick_start.html" in text


@needs_mkdocs
@pytest.mark.parametrize("link", ["[a page](no_such_page.md)", "[a heading](#no-such-heading)"])
@pytest.mark.slow
def test_a_broken_link_ends_the_build(tmp_path, link):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Home\n\n{link}\n", encoding="utf-8")
    config = tmp_path / "mkdocs.yml"
    whole = f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: docs\nhooks: []\nplugins: []\nnav: [index.md]\n"
    config.write_text(whole, encoding="utf-8")
    result = build(config, tmp_path / "site")
    assert result.returncode != 0
    assert "no" in result.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_one_that_zotune_takes(page):
    for line in commands(page):
        if line[0] not in ("--help", "--version"):
            parse(line)


def test_there_are_commands_to_parse():
    assert sum(len(list(commands(page))) for page in PAGES) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_toml_example_is_a_study_or_a_run(page, tmp_path):
    from zotune.study.cells import read_study

    for index, block in enumerate(blocks(page, "toml")):
        path = tmp_path / f"{index}.toml"
        path.write_text(block, encoding="utf-8")
        if re.search(r"^budget = ", block, re.MULTILINE):
            assert read_study(path).cells
        else:
            read_toml(path)


@pytest.mark.parametrize("page", TODAY, ids=lambda page: page.name)
def test_every_flag_in_the_text_is_one_of_today(page):
    spans = re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
    found = {flag.rstrip(".") for span in spans for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*", span)}
    general = {flag for flag in found if flag.lower().endswith(".name") or flag.startswith(ENGINE_FLAGS)}
    assert not found - general - known_flags() - flags_of_scripts() - FOREIGN


def flags_of_scripts() -> set[str]:
    scripts = [path for folder in ("benchmarks", "runs") for path in (ROOT / folder).glob("*.py")]
    scripts.append(ROOT / "src" / "zotune" / "jobs" / "plugin.py")  # of SGLang's command line
    return {flag for path in scripts for flag in re.findall(r'"(--[\w-]+)"', path.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("page", TODAY, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page):
    text = page.read_text(encoding="utf-8")
    named = set(
        re.findall(r"`((?:src/zotune|runs|benchmarks|tests|docs)/[\w/.-]+\.(?:py|sh|md|jsonl|json|png))`", text)
    )
    assert not {name for name in named if not (ROOT / name).is_file()}


def test_the_file_map_has_every_file_and_no_other():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"^- `(src/zotune/[\w/]+\.py)`: .", text, re.MULTILINE)
    with_code = [path for path in SOURCES if len(ast.parse(path.read_text(encoding="utf-8")).body) > 1]
    assert sorted(listed) == sorted(str(path.relative_to(ROOT)) for path in with_code)


def test_the_way_of_an_example_enters_each_file_once():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    way = re.findall(r"^\| \d+ \| `(src/zotune/[\w/]+\.py)` \|", text, re.MULTILINE)
    assert len(way) > 10
    assert len(way) == len(set(way))


def test_every_decision_has_a_date_and_is_in_the_index():
    text = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    index, decisions = text.partition("\n## Index\n")[2].split("\n## ", maxsplit=1)
    headings = re.findall(r"^## (.*)$", "## " + decisions, re.MULTILINE)
    dates = [heading.partition(": ")[0] for heading in headings]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for date in dates)
    assert dates == sorted(dates)
    assert sorted(re.findall(r"^- \[(.*)\]\(#", index, re.MULTILINE)) == sorted(
        heading.partition(": ")[2] for heading in headings
    )


@pytest.mark.slow
def test_python_of_the_pages_runs_and_opens_no_connection(tmp_path):
    code = "\n".join([NO_NETWORK, *blocks(ROOT / "docs" / "faq.md", "python")])
    code += "\n".join(blocks(ROOT / "docs" / "quick_start.md", "python"))
    code = code.replace('output_dir="by-hand"', 'output_dir="by-hand", callbacks=[Printed()]')
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "by-hand" / "adapter").is_dir()
