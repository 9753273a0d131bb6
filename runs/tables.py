"""Write tables of docs/results.md from what runs left behind.

python runs/tables.py imdb OUTPUT_FOLDER docs/results.md    # of runs/imdb_opt_imdb_4m.sh
python runs/tables.py demo OUTPUT_FILE docs/results.md      # of runs/demo_sweep.py, its standard output
"""

import json
import statistics
import sys
from pathlib import Path

from page import put


def imdb(output: Path) -> str:
    """Test accuracy of the runs of imdb_opt_imdb_4m.sh, mean and each seed, beside the model as it was."""
    before = json.loads((output / "zero-shot.json").read_text())
    rows = [f"| zero-shot | {before['accuracy']:.1%} | | {before['loss']:.3f} | | | |"]
    for scope in ("activated", "everywhere"):
        folders = sorted(output.glob(f"{scope}-[0-9]"))
        tests = [json.loads((folder / "test.json").read_text()) for folder in folders]
        runs = [json.loads((folder / "summary.json").read_text()) for folder in folders]
        accuracies = [test["accuracy"] for test in tests]
        rows.append(
            f"| MeZO, {scope} | {statistics.mean(accuracies):.1%} | {', '.join(f'{a:.1%}' for a in accuracies)} "
            f"| {statistics.mean(test['loss'] for test in tests):.3f} "
            f"| {statistics.median(run['train_time_s'] for run in runs):.0f} "
            f"| {statistics.mean(run['tokens_computed'] for run in runs) / 1e6:.2f} "
            f"| {statistics.mean(run['kv_reuse'] for run in runs):.1%} |"
        )
    names = ("", "accuracy", "seeds 0, 1, 2", "loss", "training, s", "tokens computed, millions", "reused")
    head = f"| {' | '.join(names)} |\n{'|---' * len(names)}|\n"
    return head + "\n".join(rows)


def demo(output: Path) -> str:
    """The table that demo_sweep.py printed."""
    return "\n".join(line for line in output.read_text().splitlines() if line.startswith("|"))


def main() -> None:
    name, output, page = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    table = {"imdb": imdb, "demo": demo}[name](output)
    print(table)
    put(page, name, table)


if __name__ == "__main__":
    main()
