"""Callbacks of transformers, told of a run of ours: state, control and logs as its Trainer has them.

The order of a step is theirs: on_step_begin, on_step_end, on_log, on_evaluate, on_save. Of what a callback asks for in
`control`, a stop, a log and a checkpoint are done; an evaluation at a step of its own is not.
"""

import math
import time
from collections.abc import Mapping
from typing import Any

from transformers import TrainerState
from transformers.trainer_callback import CallbackHandler, TrainerControl

from zotune.run.metrics import EvalEvent, StepEvent
from zotune.run.trainer import Callback, MeZOTrainer


class Told(Callback):
    """Passes on what happens in a run to `handler`."""

    def __init__(self, args: Any, state: TrainerState, handler: CallbackHandler) -> None:
        self.args, self.state, self.handler = args, state, handler
        self.control = TrainerControl()
        self._losses: list[float] = []
        self._rate = 0.0
        self._trainer: MeZOTrainer | None = None
        self._started = time.perf_counter()

    @property
    def trainer(self) -> MeZOTrainer:
        assert self._trainer is not None
        return self._trainer

    def on_train_begin(self, trainer: MeZOTrainer) -> None:
        self._trainer, self._started = trainer, time.perf_counter()
        plan, state = trainer.plan, self.state
        state.max_steps, state.global_step, state.train_batch_size = plan.num_steps, trainer.step, plan.batch_size
        state.logging_steps = plan.logging_steps or state.logging_steps
        state.eval_steps, state.save_steps = plan.eval_steps, plan.save_steps or plan.num_steps
        state.num_train_epochs = math.ceil(plan.num_steps / self._steps_per_epoch)
        state.epoch = trainer.step / self._steps_per_epoch
        self._tell("on_train_begin")
        self._tell("on_epoch_begin")
        self._tell("on_step_begin")

    def on_step_end(self, event: StepEvent) -> None:
        before = int(self.state.epoch)
        self.state.global_step, self.state.epoch = event.step, event.step / self._steps_per_epoch
        self.state.num_input_tokens_seen += event.tokens_computed + event.tokens_reused
        self._losses.append(event.loss)
        self._rate = event.learning_rate
        self._tell("on_step_end")
        if self.control.should_log:
            self._log_losses()
        if self.control.should_save and not self._saves_anyway(event.step):
            self.trainer.save(self.trainer.folder.kept(event.step))
            self.on_save(self.trainer)
        is_last = event.step >= self.trainer.plan.num_steps or self.trainer.should_stop
        if int(self.state.epoch) > before or is_last:
            self._tell("on_epoch_end")
        if not is_last:
            if int(self.state.epoch) > before:
                self._tell("on_epoch_begin")
            self._tell("on_step_begin")

    def on_evaluate(self, event: EvalEvent) -> None:
        self.evaluated(measures(event, "eval"))

    def evaluated(self, metrics: dict[str, float]) -> None:
        """Log the metrics of an evaluation, and tell of it."""
        self.log(metrics)
        self._tell("on_evaluate", metrics=metrics)
        name = (self.args.metric_for_best_model or "loss").removeprefix("eval_")
        value = metrics.get(f"eval_{name}")
        if value is None:
            return
        better = self.args.greater_is_better if self.args.greater_is_better is not None else name != "loss"
        best = self.state.best_metric
        if best is None or (value > best if better else value < best):
            self.state.best_metric, self.state.best_global_step = value, self.state.global_step

    def on_save(self, trainer: MeZOTrainer) -> None:
        self._tell("on_save")

    def on_train_end(self, trainer: MeZOTrainer) -> None:
        seconds = time.perf_counter() - self._started
        events = [event for event in trainer.metrics.events if isinstance(event, StepEvent)]
        num_samples = trainer.step * trainer.plan.batch_size
        self.totals = {
            "train_runtime": seconds, "train_samples_per_second": num_samples / seconds,
            "train_steps_per_second": trainer.step / seconds,
            "train_loss": sum(event.loss for event in events) / max(1, len(events)), "total_flos": 0.0,
        }  # fmt: skip
        self.log(dict(self.totals))
        self._tell("on_train_end")

    def log(self, values: Mapping[str, float]) -> None:
        """Keep a line of the log, and tell of it."""
        logs = {**values, "epoch": self.state.epoch}
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self._tell("on_log", logs=logs)

    def _log_losses(self) -> None:
        values = {"loss": sum(self._losses) / len(self._losses), "learning_rate": self._rate}
        self._losses = []
        self.log(values)

    def _saves_anyway(self, step: int) -> bool:
        """Whether the run keeps this step by itself."""
        every = self.trainer.plan.save_steps
        return every is not None and step % every == 0

    def _tell(self, event: str, **more: Any) -> None:
        self.control = getattr(self.handler, event)(self.args, self.state, self.control, **more)
        if self._trainer is not None and self.control.should_training_stop:
            self._trainer.should_stop = True

    @property
    def _steps_per_epoch(self) -> float:
        trainer = self.trainer
        return max(1.0, len(trainer.train_examples) / (trainer.plan.batch_size * trainer.estimator.num_batches))


def measures(event: Any, prefix: str) -> dict[str, float]:
    """What an evaluation found, under transformers' names."""
    found = {"loss": event.loss, "accuracy": event.accuracy, "macro_f1": event.macro_f1, **event.measured,
             **event.scores}  # fmt: skip
    return {f"{prefix}_{name}": float(value) for name, value in found.items() if value is not None}
