"""zotune: fine-tune language models with forward passes only, at the memory of inference."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zotune.config.settings import Config
    from zotune.drop_in.trainer import ZerothOrderTrainer
    from zotune.engine.sglang.live.attach import attach
    from zotune.errors import InputError, TrainingError
    from zotune.finetune import Result, make_trainer, mezo_finetune, resume
    from zotune.inference import evaluate, predict
    from zotune.jobs.client import JobsClient
    from zotune.replay import replay_run
    from zotune.run.evaluation import Evaluation
    from zotune.run.trainer import Callback, MeZOTrainer

_HOMES = {
    "Callback": "run.trainer", "Config": "config.settings", "Evaluation": "run.evaluation", "InputError": "errors",
    "JobsClient": "jobs.client", "MeZOTrainer": "run.trainer", "Result": "finetune", "TrainingError": "errors",
    "ZerothOrderTrainer": "drop_in.trainer", "attach": "engine.sglang.live.attach", "evaluate": "inference",
    "make_trainer": "finetune", "mezo_finetune": "finetune", "predict": "inference", "replay_run": "replay",
    "resume": "finetune",
}  # fmt: skip

__all__ = [
    "Callback", "Config", "Evaluation", "InputError", "JobsClient", "MeZOTrainer", "Result", "TrainingError",
    "ZerothOrderTrainer", "attach", "evaluate", "make_trainer", "mezo_finetune", "predict", "replay_run", "resume",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Public names load on first use: `zotune --help` need not wait for PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'zotune' has no attribute {name!r}")
    return getattr(import_module(f"zotune.{_HOMES[name]}"), name)


if "sglang" in sys.modules:
    import_module("zotune.sglang_names").announce()
