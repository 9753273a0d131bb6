"""Where the time of a step goes: PyTorch's profiler over a few steps and an evaluation, a table and a Chrome trace."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, record_function

from zotune.run.trainer import MeZOTrainer
from zotune.zo.optimizers import Optimizer, Tensors
from zotune.zo.protocol import Theta
from zotune.zo.updates import Update

# Names of regions marked in the engine and below, and of PyTorch's attention operator -> what the table calls them.
REGIONS = {
    "zotune::step": "step",
    "zotune::noise": "noise of the probes",
    "zotune::forward": "forward passes",
    "zotune::lora": "LoRA, in the forward passes",
    "zotune::attention": "attention, in the forward passes",
    "aten::scaled_dot_product_attention": "attention, as PyTorch has it",
    "zotune::cache": "prefix cache, its filling included",
    "zotune::update": "update of theta",
    "zotune::evaluation": "evaluation, once",
}


@dataclass(frozen=True)
class Region:
    """Wall time of one region on the CPU, and on the device where there is one; seconds in all."""

    name: str
    calls: int
    cpu_s: float
    device_s: float


def profile_steps(trainer: MeZOTrainer, num_steps: int, trace: Path) -> list[Region]:
    """Profile `num_steps` training steps, after two that are not counted, and one evaluation; writes `trace`."""
    trainer.optimizer = _Marked(trainer.optimizer)
    for _ in range(2):
        trainer.train_step()
    trainer.evaluate()
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(num_steps):
            with record_function("zotune::step"):
                trainer.train_step()
        with record_function("zotune::evaluation"):
            trainer.evaluate()
    trace.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(trace))
    found = {event.key: event for event in profiler.key_averages()}
    return [
        Region(name, event.count, event.cpu_time_total / 1e6, event.device_time_total / 1e6)
        for key, name in REGIONS.items()
        if (event := found.get(key)) is not None
    ]


class _Marked:
    """An optimizer whose updates show in the trace."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.init = optimizer.init
        self._update = optimizer.update

    def update(
        self, theta: Theta, state: Mapping[str, np.ndarray], update: Update, learning_rate: float
    ) -> tuple[Theta, Tensors]:
        with record_function("zotune::update"):
            return self._update(theta, state, update, learning_rate)
