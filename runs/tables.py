"""Write the tables of README.md from what runs left behind: python runs/tables.py imdb OUTPUT README.md"""

import json
import re
import statistics
import sys
from pathlib import Path


def imdb(output: Path) -> str:
    """Test accuracy of the runs of imdb_opt_imdb_4m.sh, mean and each seed, beside the model as it was."""
    before = json.loads((output / "zero-shot.json").read_text())
    rows = [f"| zero-shot | {before['accuracy']:.1%} | | {before['loss']:.3f} | | |"]
    for scope in ("activated", "everywhere"):
        folders = sorted(output.glob(f"{scope}-[0-9]"))
        tests = [json.loads((folder / "test.json").read_text()) for folder in folders]
        runs = [json.loads((folder / "summary.json").read_text()) for folder in folders]
        accuracies = [test["accuracy"] for test in tests]
        rows.append(
            f"| MeZO, {scope} | {statistics.mean(accuracies):.1%} | {', '.join(f'{a:.1%}' for a in accuracies)} "
            f"| {statistics.mean(test['loss'] for test in tests):.3f} "
            f"| {statistics.median(run['train_time_s'] for run in runs):.0f} "
            f"| {statistics.mean(run['tokens_computed'] for run in runs) / 1e6:.1f} |"
        )
    head = (
        "| | accuracy | seeds 0, 1, 2 | loss | training, s | tokens computed, millions |\n|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(rows)


def main() -> None:
    name, output, readme = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    table = {"imdb": imdb}[name](output)
    print(table)
    marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    text, count = marked.subn(lambda found: found[1] + table + "\n" + found[2], readme.read_text())
    if count != 1:
        sys.exit(f"{readme} has no place for the table, between <!-- {name} --> and <!-- /{name} -->")
    readme.write_text(text)


if __name__ == "__main__":
    main()
