"""A table's place on a page: between <!-- NAME --> and <!-- /NAME -->."""

import re
import sys
from pathlib import Path


def put(page: Path, name: str, text: str) -> None:
    """Write `text` where it stands; end the program where there is no such place."""
    marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    whole, count = marked.subn(lambda found: found[1] + text.rstrip("\n") + "\n" + found[2], page.read_text("utf-8"))
    if count != 1:
        sys.exit(f"{page} has no place for the table, between <!-- {name} --> and <!-- /{name} -->")
    page.write_text(whole, encoding="utf-8")
