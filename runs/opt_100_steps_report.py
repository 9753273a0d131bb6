"""The report of runs/opt_100_steps.sh: what its runs measured, beside inference and first-order training in memory.

Memory is the peak of a fresh process each (of one rank, with SGLang): scoring the held-out examples at theta, and ten
steps of backpropagation with Adam on the same adapter, batch and scope, which runs on PyTorch whatever the engine.
"""

import argparse
import json
import multiprocessing
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from page import put

from zotune.adapter.forms import initial_theta
from zotune.assemble.data import load_data
from zotune.assemble.model import find_model
from zotune.assemble.parts import assemble
from zotune.config.reading import make_config, read_run_config
from zotune.config.settings import Config
from zotune.finetune import start_run
from zotune.run.metrics import EvalEvent, StepEvent, kv_reuse, read_metrics
from zotune.zo.protocol import AT_THETA

SCOPES = ("activated", "everywhere")


def inference_bytes(config: Config) -> int:
    """Peak memory of scoring the held-out examples, a batch at a time."""
    parts = assemble(config, load_data(config), find_model(config))
    theta = initial_theta(parts.engine.tensor_shapes, 0, parts.engine.spec)
    for start in range(0, len(parts.evaluation), config.batch_size):
        parts.engine.score(theta, [AT_THETA], parts.evaluation[start : start + config.batch_size])
    peak = parts.engine.peak_memory_bytes()
    parts.engine.close()
    return peak


def first_order_bytes(config: Config, folder: str) -> int:
    """Peak memory of ten steps of Adam."""
    plain = replace(
        config, engine="plain", kv_cache_gb=None, num_steps=10, warmup_steps=0, lr_scheduler_type="constant",
        max_eval_samples=1, output_dir=folder, overwrite=True, estimator="backprop", directions=None, noise=None,
        tuning="lora", init_lora_weights="kaiming", tables={},
    )  # fmt: skip
    with start_run(plain) as trainer:
        for _ in range(10):
            trainer.train_step()
        return trainer.engine.peak_memory_bytes()


def in_a_process_of_its_own(work: Any, *arguments: Any) -> int:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak: int = pool.apply(work, arguments)
    return peak


def column(folder: Path) -> dict[str, str]:
    """One run, in the words of the report."""
    config = make_config({"output_dir": None}, base=read_run_config(folder / "config.toml"))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    events = read_metrics(folder / "metrics.jsonl")
    steps = [event for event in events if isinstance(event, StepEvent)]
    evals = [event for event in events if isinstance(event, EvalEvent)]
    times = sorted(event.step_time_s for event in steps)
    whole = sum(times) + sum(event.time_s for event in evals)
    computed, reused = sum(e.tokens_computed for e in steps), sum(e.tokens_reused for e in steps)
    inference = in_a_process_of_its_own(inference_bytes, config)
    first_order = in_a_process_of_its_own(first_order_bytes, config, str(folder.parent / f"first-order-{folder.name}"))
    peak = summary["peak_memory_bytes"]
    best = min(evals, key=lambda event: event.loss)

    def accuracy(event: EvalEvent) -> str:
        return f"{event.loss:.4f} ({event.accuracy:.1%})" if event.accuracy is not None else f"{event.loss:.4f}"

    return {
        "step, median (5 to 95 %), s": f"{statistics.median(times):.4f} ({times[5]:.4f} - {times[-6]:.4f})",
        "steps/s, training alone": f"{len(steps) / sum(times):.2f}",
        "steps/s end to end, with evaluations": f"{len(steps) / whole:.2f}",
        "tokens served from cache": f"{kv_reuse(reused, computed):.1%}",
        "held-out loss (accuracy), first": accuracy(evals[0]),
        "held-out loss (accuracy), last": accuracy(evals[-1]),
        "held-out loss (accuracy), best": f"{accuracy(best)} at step {best.step}",
        "peak memory, MiB": f"{peak / 2**20:.0f}",
        "over inference alone": f"{peak / inference:.2f}x",
        "first-order LoRA with Adam on PyTorch, MiB": f"{first_order / 2**20:.0f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--write", type=Path, help="a page to put the table into")
    options = parser.parse_args()
    columns = {scope: column(options.output / scope) for scope in SCOPES}
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    lines += [
        "| " + " | ".join([name, *(columns[scope][name] for scope in columns)]) + " |" for name in columns[SCOPES[0]]
    ]
    table = "\n".join(lines) + "\n"
    print(table)
    if options.write:
        put(options.write, "report", table)


if __name__ == "__main__":
    main()
