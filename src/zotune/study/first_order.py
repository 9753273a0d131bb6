"""First-order LoRA: backpropagation and Adam on the same adapter, scope and data, to see the distance to it.

A step is one forward and one backward pass of the plain engine over a left-padded batch, a row per example and
candidate beginning, and torch.optim.Adam on the matrices. Nothing is journalled: such a run cannot be resumed.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from zotune.engine.torch.plain import PlainEngine
from zotune.errors import InputError
from zotune.run.metrics import StepEvent
from zotune.run.trainer import MeZOTrainer
from zotune.zo.objectives import cross_entropy, token_nll
from zotune.zo.protocol import Engine, Example

NEEDS = "first-order training takes --engine torch or plain, --tuning lora and --peft-type lora"


class FirstOrderTrainer(MeZOTrainer):
    """A trainer whose steps backpropagate. Its engine is the plain one, or a fast one that evaluates."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.plain = _plain_engine(self.engine)
        self.matrices = {name: torch.from_numpy(value.copy()) for name, value in self.theta.items()}
        self.matrices = {name: value.to(self.plain.model.device) for name, value in self.matrices.items()}
        for matrix in self.matrices.values():
            matrix.requires_grad_(True)
        self.adam = torch.optim.Adam(self.matrices.values())
        self.loss = LOSSES[self.objective]

    @classmethod
    def check(cls, engine: Engine) -> None:
        _plain_engine(engine)

    def train_step(self) -> None:
        """One step of Adam; its tokens are those of the forward pass."""
        started, before = time.perf_counter(), asdict(self.engine.stats)
        batch, learning_rate = self._batch(), self.schedule(self.step)
        self.adam.zero_grad()
        loss = self.plain.backward(self.matrices, batch, lambda log_probs: self.loss(log_probs, batch))
        self._check(loss, [loss])
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        self.adam.step()
        self.theta = {name: matrix.detach().cpu().numpy().copy() for name, matrix in self.matrices.items()}
        counts = {name: count - before[name] for name, count in asdict(self.engine.stats).items()}
        event = StepEvent(self.step + 1, loss, learning_rate, (), time.perf_counter() - started, **counts)
        self.metrics.append(event)
        self.step = event.step
        for callback in self.callbacks:
            callback.on_step_end(event)


def _plain_engine(engine: Engine) -> PlainEngine:
    plain = engine if isinstance(engine, PlainEngine) else getattr(engine, "plain", None)
    if not isinstance(plain, PlainEngine) or plain.spec is None or plain.spec.peft_type != "lora":
        raise InputError(NEEDS)
    return plain


def _mean_log_probs(log_probs: torch.Tensor, batch: Sequence[Example]) -> torch.Tensor:
    counts = np.zeros(tuple(log_probs.shape))
    for row, example in enumerate(batch):
        counts[row, : len(example.candidates)] = [len(candidate) for candidate in example.candidates]
    known = torch.from_numpy(counts)
    return torch.where(known > 0, log_probs / known.clamp(min=1), -torch.inf)


def _cross_entropy(log_probs: torch.Tensor, batch: Sequence[Example]) -> torch.Tensor:
    return functional.cross_entropy(
        _mean_log_probs(log_probs, batch), torch.tensor([example.label for example in batch])
    )


def _token_nll(log_probs: torch.Tensor, batch: Sequence[Example]) -> torch.Tensor:
    return -_mean_log_probs(log_probs, batch)[:, 0].mean()


# The objectives of objectives.py, in a form that can be differentiated.
LOSSES: dict[Any, Callable[[torch.Tensor, Sequence[Example]], torch.Tensor]] = {
    cross_entropy: _cross_entropy,
    token_nll: _token_nll,
}
