"""Code blocks of a Markdown page, for the tests that run or parse them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of that language, as they stand."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every `zotune` command in `sh` and `console` blocks, but for those that read a settings file."""
    for block in blocks(page, "sh") + blocks(page, "console"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["zotune"] and not any(word.endswith(".toml") for word in words):
                yield words[1:]
