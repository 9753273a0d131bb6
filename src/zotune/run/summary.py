"""What summary.json says of a run."""

import platform
from importlib import metadata
from typing import Any

from zotune.run.metrics import EvalEvent, StepEvent, best_of, kv_reuse
from zotune.run.samples import paired_gain
from zotune.run.trainer import MeZOTrainer


def summarize(trainer: MeZOTrainer) -> dict[str, Any]:
    """summary.json: read off the metrics of the whole run, also of the part before a resume."""
    steps = [event for event in trainer.metrics.events if isinstance(event, StepEvent)]
    evals = trainer.evaluations
    train_time_s = sum(event.step_time_s for event in steps)
    computed, reused = (sum(getattr(event, f"tokens_{what}") for event in steps) for what in ("computed", "reused"))

    def metrics(event: EvalEvent | None) -> dict[str, Any] | None:
        return event.metrics if event else None

    return {
        "model": trainer.plan.model,
        "task": trainer.plan.task,
        "exported": trainer.export.name,
        "initial": metrics(evals[0] if evals else None),
        "best": metrics(best_of(evals) if evals else None),
        "final": metrics(evals[-1] if evals else None),
        "worse_than_initial": _worse(evals[0], evals[-1]) if evals else [],
        **({"reward_gain": paired_gain(trainer.folder.samples)} if trainer.folder.samples.is_file() else {}),
        "steps": trainer.step,
        "train_time_s": train_time_s,
        "steps_per_s": len(steps) / train_time_s if train_time_s else 0.0,
        "tokens_computed": computed,
        "tokens_reused": reused,
        "kv_reuse": kv_reuse(reused, computed),
        "peak_memory_bytes": trainer.engine.peak_memory_bytes(),
        "seed": trainer.plan.seed,
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("zotune", "torch", "transformers", "peft", "numpy")},
        },
    }


def _worse(first: EvalEvent, last: EvalEvent) -> list[str]:
    """What is worse at the end than it was at the beginning: loss, accuracy."""
    worse = ["loss"] if last.loss > first.loss else []
    if first.accuracy is not None and last.accuracy is not None and last.accuracy < first.accuracy:
        worse.append("accuracy")
    return worse
