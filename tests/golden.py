"""Golden runs: what zotune computed before; see test_golden.py.

`python -m tests.golden` writes tests/golden/runs.json, a short run for every estimator, optimizer, kind of noise, form
of the adapter, scope, engine and task: after a change that moves last bits, or what a run starts from. What is in
tests/golden/stopped stays, with what it replays to and ended as: runs of commit 1ec53df, stopped in the middle.
"""

import hashlib
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from tests.conftest import CONFIGS, REVIEWS, make_model, make_tokenizer
from zotune import Callback, mezo_finetune
from zotune.run.journal import read_journal
from zotune.run.metrics import EvalEvent, StepEvent, read_metrics

FOLDER = Path(__file__).with_name("golden")
STEPS = 12
STOP_AT = 7  # where the runs in stopped/ were stopped
OPTIONS: dict[str, Any] = {
    "labels": ("terrible", "great"), "invocation": " It was", "num_steps": STEPS, "batch_size": 3, "directions": 2,
    "eval_steps": 5, "learning_rate": 0.01, "lora_rank": 2, "num_threads": 1, "max_eval_samples": 4,
}  # fmt: skip
NO_TASK = {"labels": (), "invocation": None}
# A row: the architecture, and settings over OPTIONS.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "defaults": ("opt", {"directions": None, "learning_rate": None}),
    "defaults everywhere": ("llama", {"directions": None, "scope": "everywhere"}),
    "mezo": ("opt", {"estimator": "spsa", "optimizer": "sgd", "lr_scheduler_type": "constant", "directions": 1}),
    "mezo everywhere": ("gpt2", {
        "estimator": "spsa", "optimizer": "sgd", "scope": "everywhere", "target_modules": ("c_attn",),
    }),
    "all-linear": ("llama", {"target_modules": ("all-linear",), "lr_scheduler_type": "cosine", "warmup_steps": 3}),
    "label words of several tokens": ("llama", {"labels": ("terrible", "great film", "great joy")}),
    "fzoo": ("opt", {"estimator": "fzoo", "optimizer": "sgd"}),
    "fzoo, Gaussian, clipped": ("opt", {"estimator": "fzoo", "noise": "gaussian", "clip": 3.0}),
    "es of z-scores": ("opt", {"estimator": "es", "optimizer": "adam"}),
    "es of ranks": ("opt", {"estimator": "es", "es": {"shaping": "rank"}, "optimizer": "adamw", "weight_decay": 0.1}),
    "svrg": ("opt", {
        "estimator": "svrg", "svrg": {"steps": 6, "batches": 3}, "optimizer": "sgd", "sgd": {"momentum": 0.5},
    }),
    "svrg everywhere": ("opt", {
        "scope": "everywhere", "estimator": "svrg", "noise": "rademacher", "optimizer": "adamw",
    }),
    "hizoo": ("opt", {"estimator": "hizoo", "optimizer": "hizoo", "hizoo": {"smoothing": 0.01}}),
    "adaptive": ("opt", {"estimator": "adaptive", "adaptive": {"steps": 4}, "optimizer": "adam"}),
    "sign": ("opt", {"estimator": "spsa", "optimizer": "sign", "clip": 2.0, "learning_rate": 1e-3}),
    "muon, low rank": ("opt", {"optimizer": "muon", "noise": "low_rank", "low_rank": {"rank": 1}, "noise_steps": 7}),
    "sphere": ("opt", {"noise": "sphere", "optimizer": "adam", "adam": {"beta2": 0.9}}),
    # Adam's first steps are of almost one size: which are the smallest would hang on the last bits.
    "sparse": ("opt", {"sparsity": 0.75, "noise": "rademacher", "engine": "plain", "optimizer": "sgd"}),
    "blocks": ("opt", {"noise_blocks": 2, "noise_steps": 3, "optimizer": "sgd", "sgd": {"momentum": 0.9}}),
    "lora": ("opt", {"tuning": "lora", "optimizer": "adam"}),
    "lora at random": ("opt", {"tuning": "lora", "init_lora_weights": "kaiming"}),
    "lora_fa at random": ("opt", {"tuning": "lora_fa", "init_lora_weights": "kaiming"}),
    "vera": ("opt", {"tuning": "vera", "lora_rank": 16, "estimator": "fzoo", "learning_rate": 0.05}),
    "prompt_tuning": ("opt", {"tuning": "prompt_tuning", "prompt_tuning": {"num_virtual_tokens": 9}, "lora_rank": 8,
                              "optimizer": "muon"}),
    "full": ("opt", {"tuning": "full", "lora_rank": 8, "directions": None, "epsilon": 1e-3, "learning_rate": 1e-4}),
    "jvp": ("opt", {"estimator": "jvp", "optimizer": "adam"}),
    "jvp everywhere": ("llama", {"estimator": "jvp", "scope": "everywhere"}),
    "jvp plain": ("opt", {"estimator": "jvp", "engine": "plain"}),
    "plain everywhere": ("llama", {"engine": "plain", "scope": "everywhere"}),
    "without a prefix cache": ("opt", {"kv_cache_gb": 0.0}),
    "completion": ("llama", {**NO_TASK, "task": "completion"}),
    "completion activated": ("llama", {"labels": (), "invocation": "\nAnswer:", "task": "completion"}),
    "plain text": ("opt without an end token", {**NO_TASK, "task": "lm"}),
    "nf4": ("llama", {"quantization": "nf4"}),
}  # fmt: skip
STOPPED = ("defaults", "svrg", "adaptive", "full", "prompt_tuning", "blocks", "vera")


class StopAt(Callback):
    """Ends a run after a step, as Ctrl-C would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, event: StepEvent) -> None:
        if event.step == self.step:
            raise KeyboardInterrupt


def fingerprint() -> str:
    """What the last bits of a forward pass depend on."""
    cpu = Path("/proc/cpuinfo")
    lines = [line.partition(":") for line in cpu.read_text().splitlines()]
    names = {value.strip() for name, _, value in lines if name.strip() in ("cpu family", "model", "model name")}
    return " / ".join([*sorted(names), torch.backends.cpu.get_cpu_capability(), torch.__version__, platform.machine()])


def make_places(root: Path) -> None:
    """Models and data under `root`, as the golden runs had them."""
    for kind in CONFIGS:
        make_model(kind).save_pretrained(root / kind)
        make_tokenizer().save_pretrained(root / kind)
    endless = make_tokenizer()
    endless.eos_token = None  # plain texts had no end token then
    make_model("opt").save_pretrained(root / "opt without an end token")
    endless.save_pretrained(root / "opt without an end token")
    pairs = [{"prompt": review["text"], "completion": f" {'great' if review['label'] else 'terrible'} film"}
             for review in REVIEWS]  # fmt: skip
    for name, records in (("reviews", REVIEWS), ("pairs", pairs)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def settings_of(root: Path, row: str) -> dict[str, Any]:
    kind, settings = ROWS[row]
    data = "pairs" if settings.get("task") == "completion" else "reviews"
    return {"model": str(root / kind), "train_data": str(root / f"{data}.jsonl"), **OPTIONS, **settings}


def record(run: Path) -> dict[str, Any]:
    """Everything about a run that must not change: all but times."""
    events = read_metrics(run / "metrics.jsonl")
    exported = run / ("adapter" if (run / "adapter").exists() else "model")
    weights = {folder.name: tensors_digest(next(folder.glob("*.safetensors"))) for folder in (exported, run / "best")}
    config = {}
    if exported.name == "adapter":
        config = json.loads((exported / "adapter_config.json").read_text())
        for name in ("base_model_name_or_path", "peft_version"):
            config.pop(name, None)
    return {
        "journal": [
            [entry.step, entry.loss, entry.learning_rate,
             [[slope.seed, slope.value, slope.curvature, slope.rounding] for slope in entry.slopes]]
            for entry in read_journal(run / "journal.jsonl")[1]
        ],
        "evaluations": [[e.step, e.accuracy, e.loss, e.num_examples] for e in events if isinstance(e, EvalEvent)],
        "counts": [
            [e.forward_passes, e.tokens_computed, e.tokens_reused] for e in events if isinstance(e, StepEvent)
        ],
        "weights": weights,
        "peft": config,
    }  # fmt: skip


def tensors_digest(path: Path) -> str:
    """Of the names, shapes and numbers in a file; what else its header says is not the run's."""
    return hashlib.sha256(save(load_file(path), metadata={"format": "pt"})).hexdigest()


def main() -> None:
    root = Path(tempfile.mkdtemp())
    make_places(root)
    runs = {}
    for row in ROWS:
        mezo_finetune(**settings_of(root, row), output_dir=str(root / "runs" / row))
        runs[row] = record(root / "runs" / row)
        print(row, file=sys.stderr)
    before = json.loads((FOLDER / "runs.json").read_text())
    runs |= {name: before[name] for name in ("replayed", "ended")}
    lines = [f"{json.dumps(row)}: {json.dumps(run)}" for row, run in runs.items()]
    text = "{" + ",\n".join([f'"fingerprint": {json.dumps(fingerprint())}', *lines]) + "}\n"
    (FOLDER / "runs.json").write_text(text)


if __name__ == "__main__":
    main()
