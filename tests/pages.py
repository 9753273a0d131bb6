"""Code blocks of a Markdown page, for the tests that run or parse them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
READS_SETTINGS = ("train", "profile")  # a TOML file may stand first, which is read as the line is parsed


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of that language, as they stand."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every `zotune` command in `sh` and `console` blocks, but for those that read a settings file."""
    for block in blocks(page, "sh") + blocks(page, "console"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split(" | "):
                words = shlex.split(part, comments=True)
                reads_a_file = len(words) > 2 and words[1] in READS_SETTINGS and words[2].endswith(".toml")
                if words[:1] == ["zotune"] and not reads_a_file:
                    yield words[1:]
