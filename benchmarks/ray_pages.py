"""Where the Ray benchmarks keep their figures, docs/ray.jsonl, and how these get into docs/ray.md."""

import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "runs"))
from page import put

DOCS = Path(__file__).parents[1] / "docs"
FIGURES, PAGE = DOCS / "ray.jsonl", DOCS / "ray.md"


def machine() -> str:
    """The processor, how many there are, and how busy they are."""
    names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"


def kept_rows(name: str, header: list[str]) -> list[list[str]]:
    """The rows of a table that was kept with this header."""
    kept = _kept().get(name, {})
    return list(kept["rows"]) if kept.get("header") == header else []


def publish(name: str, header: list[str], rows: list[list[str]], note: str = "") -> None:
    """Keep a table under its name, and put it in the place of the page that has this name."""
    kept = _kept()
    kept[name] = {"name": name, "header": header, "rows": rows, "note": note, "machine": machine()}
    FIGURES.write_text("".join(json.dumps(line) + "\n" for line in kept.values()), encoding="utf-8")
    put(PAGE, name, _text(kept[name]))
    print("\n".join(" | ".join(row) for row in [header, *rows]), note, sep="\n", flush=True)


def _kept() -> dict[str, Any]:
    lines = FIGURES.read_text(encoding="utf-8").splitlines() if FIGURES.is_file() else []
    return {line["name"]: line for line in map(json.loads, lines)}


def _text(line: dict[str, Any]) -> str:
    lines = [line["header"], ["---"] * len(line["header"]), *line["rows"]]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return f"\n{table}\n\n{line['note']} ({line['machine']})\n\n"
