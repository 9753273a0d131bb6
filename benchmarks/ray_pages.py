"""Where the Ray benchmarks keep their figures, docs/ray.jsonl, and how these get into docs/ray.md."""

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
FIGURES, PAGE = DOCS / "ray.jsonl", DOCS / "ray.md"


def machine() -> str:
    """The processor, how many there are, and how busy they are."""
    names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"


def publish(name: str, header: list[str], rows: list[list[str]], note: str = "") -> None:
    """Keep a table under its name, and put it in the place of the page that has this name."""
    kept = (
        {line["name"]: line for line in map(json.loads, FIGURES.read_text().splitlines())} if FIGURES.is_file() else {}
    )
    kept[name] = {"name": name, "header": header, "rows": rows, "note": note, "machine": machine()}
    FIGURES.write_text("".join(json.dumps(line) + "\n" for line in kept.values()), encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    for line in kept.values():
        text = _filled(text, line)
    PAGE.write_text(text, encoding="utf-8")
    print("\n".join(" | ".join(row) for row in [header, *rows]), note, sep="\n", flush=True)


def _filled(text: str, line: dict[str, Any]) -> str:
    lines = [line["header"], ["---"] * len(line["header"]), *line["rows"]]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    content = f"{table}\n\n{line['note']} ({line['machine']})"
    place = re.compile(rf"(<!-- {line['name']} -->\n).*?(<!-- /{line['name']} -->)", re.DOTALL)
    return place.sub(lambda found: f"{found[1]}\n{content}\n\n{found[2]}", text)
