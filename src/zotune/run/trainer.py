"""The training loop: ask for probes, score them, tell the estimator, update theta, write the journal.

A run is its configuration, its seed and its journal. Everything below is a pure function of those and of the
examples, so a run that is stopped anywhere and resumed goes on bit for bit as if it had not been.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, Self

from zotune.run.checkpoint import write_checkpoint
from zotune.run.evaluation import Evaluation, evaluate
from zotune.run.folder import RunFolder
from zotune.run.journal import Checkpointed, Entry, Journal
from zotune.run.metrics import EvalEvent, MetricsFile, StepEvent, best_of
from zotune.run.own_metrics import OwnMetrics
from zotune.run.samples import write_samples
from zotune.run.watch import Watch
from zotune.zo.digest import digest
from zotune.zo.draws import derive_seed, permutation
from zotune.zo.estimators import Estimator
from zotune.zo.moves import Move, moved
from zotune.zo.noise import GAUSSIAN, Noise
from zotune.zo.noise_ahead import AHEAD
from zotune.zo.objectives import Objective
from zotune.zo.optimizers import Optimizer, Tensors
from zotune.zo.protocol import Engine, Example, Theta
from zotune.zo.schedules import Schedule
from zotune.zo.updates import Slopes, Update


class Callback:
    """Told what happens in a run: inherit, and override what you need."""

    def on_train_begin(self, trainer: "MeZOTrainer") -> None: ...

    def on_step_end(self, event: StepEvent) -> None: ...

    def on_evaluate(self, event: EvalEvent) -> None: ...

    def on_save(self, trainer: "MeZOTrainer") -> None: ...

    def on_train_end(self, trainer: "MeZOTrainer") -> None: ...

    def close(self) -> None:
        """Called when the trainer is closed, also where training ended early."""


@dataclass(frozen=True)
class TrainingPlan:
    """How long to train, on how much at a time, and when to look; `model` and `task` are what its summary calls it.

    `epsilon` and `dtype`, the precision of the model, are there to say what helps when training goes wrong, and
    `logging_steps` for those who show a run. Every `save_steps` theta is kept, the last `save_total_limit` times.
    `evaluates` is whether training stops for evaluations, where there are examples for them.
    """

    num_steps: int
    batch_size: int
    directions: int
    seed: int
    eval_steps: int
    early_stopping_patience: int | None = None
    model: str = ""
    task: str = ""
    epsilon: float = math.inf
    dtype: str | None = None
    logging_steps: int | None = None
    save_steps: int | None = None
    save_total_limit: int | None = None
    evaluates: bool = True


@dataclass(frozen=True)
class Export:
    """How theta is given to others: `save` writes a folder, which has the name `name` in the run folder.

    `is_saved` says whether a folder holds theta; of a model, whether it holds one.
    """

    name: str
    save: Callable[[Path, Theta], None]
    is_saved: Callable[[Path, Theta], bool]


class Stream(Protocol):
    """Examples in an order of their own."""

    def batch(self, first: int, count: int) -> list[Example]:
        """Examples `first` to `first + count`; it waits until they are there."""
        ...


class MeZOTrainer:
    """Trains theta on one engine and keeps its run folder. `zotune.mezo_finetune` builds one from a configuration.

    Args:
        engine, estimator, optimizer, objective, schedule: the parts of a step.
        plan: steps, batch size, seed, evaluations.
        train_examples, eval_examples: what to learn from, and what to evaluate on (may be empty).
        export: how theta is saved.
        folder, journal, metrics: where the run is kept; `journal` and `metrics` are open at `step`.
        theta, optimizer_state, step: where to start: the initial point, or what a replay gave.
        noise: what the directions are drawn from.
        stream: where batches come from, in the place of the training examples.
        own_metrics: what evaluations measure beside the loss.
    """

    def __init__(
        self,
        engine: Engine,
        estimator: Estimator,
        optimizer: Optimizer,
        objective: Objective,
        schedule: Schedule,
        plan: TrainingPlan,
        train_examples: Sequence[Example],
        eval_examples: Sequence[Example],
        *,
        folder: RunFolder,
        journal: Journal,
        metrics: MetricsFile,
        export: Export,
        theta: Theta,
        optimizer_state: Tensors,
        step: int = 0,
        noise: Noise = GAUSSIAN,
        callbacks: Iterable[Callback] = (),
        stream: Stream | None = None,
        own_metrics: OwnMetrics | None = None,
    ) -> None:
        self.engine = engine
        self.estimator = estimator
        self.optimizer = optimizer
        self.objective = objective
        self.schedule = schedule
        self.plan = plan
        self.train_examples = train_examples
        self.eval_examples = eval_examples
        self.stream = stream
        self.folder = folder
        self.journal = journal
        self.metrics = metrics
        self.export = export
        self.theta = theta
        self.optimizer_state = optimizer_state
        self.step = step
        self.noise = noise
        self.callbacks = list(callbacks)
        self.own_metrics = own_metrics
        self.should_stop = False  # a callback may ask for it; the step it was told of is the last one
        sizes = f"--batch-size (now {plan.batch_size}), --directions (now {plan.directions}) or --max-length"
        self._watch = Watch(folder.path, metrics, schedule, plan.epsilon, plan.dtype, sizes)

    # ---- the algorithm -------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Run to the last step, until evaluations stop improving, or until a callback sets `should_stop`.

        Raises:
            TrainingError: the loss is not finite, every slope is zero, memory or the disk is full; the journal is
                whole.
        """
        for callback in self.callbacks:
            callback.on_train_begin(self)
        self._save_if_due()
        self._evaluate_if_due()
        while not self._is_done():
            self.train_step()
            self._checkpoint_if_due()
            self._save_if_due()
            self._evaluate_if_due()
        with self._watch.writing(self.step):
            self.save(self.exported)
        for callback in self.callbacks:
            callback.on_train_end(self)

    def train_step(self, batch: Sequence[Example] | None = None) -> None:
        """One step of the algorithm; it is in the journal when this returns.

        Args:
            batch: what to learn from, of `batch_size` examples times the estimator's `num_batches`. Default: the next
                of the run's own. A resume has only those, and so cannot compute a step by a gradient again that was
                given another batch: `checkpoint` keeps what was learned.
        """
        if batch is None:
            batch = self._batch(self.estimator.num_batches)
        started, counted = time.perf_counter(), asdict(self.engine.stats)
        seeds, noise = self._seeds(self.step), self.noise.at(self.plan.seed, self.step)
        AHEAD.start(self.noise.at(self.plan.seed, self.step + 1), self._seeds(self.step + 1), self.theta)
        with self._watch.computing(self.step):
            estimate = self.estimator.estimate(self.objective, self.engine, self.theta, batch, seeds, noise)
        slopes = estimate.update.values if isinstance(estimate.update, Slopes) else ()
        learning_rate = self.schedule(self.step)
        self._watch.check(self.step, estimate)
        self.estimator = self.estimator.after(self.theta, slopes)
        before = self.theta
        move = Move(self.optimizer, estimate.update, learning_rate)
        with self._watch.computing(self.step):
            self.theta, self.optimizer_state = moved(self.engine, before, self.optimizer_state, move)
        self._watch.look_at_step(self.step + 1, before, self.theta)
        event = StepEvent(
            step=self.step + 1,
            loss=estimate.loss,
            learning_rate=learning_rate,
            slopes=tuple(slope.value for slope in slopes),
            step_time_s=time.perf_counter() - started,
            measured=dict(estimate.measured),
            **{name: count - counted[name] for name, count in asdict(self.engine.stats).items()},
        )
        # The journal comes last: a step is done when its line is on disk; a resume forgets metrics beyond it.
        with self._watch.writing(self.step):
            self.metrics.append(event)
            self.journal.append(Entry(event.step, estimate.loss, learning_rate, self._journalled(estimate.update)))
        self.step = event.step
        for callback in self.callbacks:
            callback.on_step_end(event)

    def _journalled(self, update: Update) -> Slopes | Checkpointed:
        """What the journal holds of a step: its slopes, or what theta is after it where it learned by a gradient."""
        return update if isinstance(update, Slopes) else Checkpointed(digest(self.theta))

    def _batch(self, num_batches: int = 1) -> list[Example]:
        """Examples `step * batch_size ...` of an endless stream of seeded permutations of the data."""
        count, size = len(self.train_examples), self.plan.batch_size
        if self.stream is not None:
            return self.stream.batch(self.step * size, num_batches * size)
        positions = range(self.step * size, (self.step + num_batches) * size)
        orders = {
            epoch: permutation(self.plan.seed, f"epoch/{epoch}", count) for epoch in {p // count for p in positions}
        }
        return [self.train_examples[orders[position // count][position % count]] for position in positions]

    def _seeds(self, step: int) -> list[int]:
        return [derive_seed(self.plan.seed, "direction", step, k) for k in range(self.plan.directions)]

    # ---- evaluation, saving, stopping ----------------------------------------------------------------------------

    def evaluate(self, examples: Sequence[Example] | None = None) -> Evaluation:
        """Loss and accuracy of theta on `examples` (default: the evaluation examples)."""
        examples = self.eval_examples if examples is None else examples
        return evaluate(self.engine, self.theta, self.objective, examples, metrics=self.own_metrics)

    @property
    def exported(self) -> Path:
        """Where theta lies after an evaluation and at the end."""
        return self.folder.path / self.export.name

    def save(self, folder: Path) -> None:
        """Export theta: a PEFT adapter folder, or a model folder of transformers."""
        self.export.save(folder, self.theta)

    def close(self) -> None:
        """Release the journal and metrics files, and the model."""
        for callback in self.callbacks:
            callback.close()
        self.objective.close()
        self.engine.close()
        self.journal.close()
        self.metrics.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def evaluations(self) -> list[EvalEvent]:
        return [event for event in self.metrics.events if isinstance(event, EvalEvent)]

    @property
    def _is_due(self) -> bool:
        """Whether it is time to look at theta, and to keep it."""
        return self.step % self.plan.eval_steps == 0 or self.step == self.plan.num_steps or self.should_stop

    def _checkpoint_if_due(self) -> None:
        if self._is_due or self._is_kept:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Keep theta where the journal cannot rebuild it."""
        if not self.estimator.seeded:
            with self._watch.writing(self.step):
                write_checkpoint(self.folder.checkpoints, self.step, self.theta, self.optimizer_state)

    @property
    def _is_kept(self) -> bool:
        """Whether theta after this step is to be kept for the user."""
        return self.plan.save_steps is not None and self.step > 0 and self.step % self.plan.save_steps == 0

    def _save_if_due(self) -> None:
        if not self._is_kept:
            return
        with self._watch.writing(self.step):
            self.save(self.folder.kept(self.step))
            if self.plan.save_total_limit is not None:
                self.folder.drop_kept(self.plan.save_total_limit)
        for callback in self.callbacks:
            callback.on_save(self)

    def _evaluate_if_due(self) -> None:
        if (
            not self.plan.evaluates
            or not self._is_due
            or not self.eval_examples
            or any(event.step == self.step for event in self.evaluations)
        ):
            return
        started = time.perf_counter()
        with self._watch.computing(self.step):
            evaluation = self.evaluate()
        self._watch.check_evaluation(self.step, evaluation.loss)
        event = EvalEvent(
            step=self.step,
            split="eval",
            accuracy=evaluation.accuracy,
            loss=evaluation.loss,
            num_examples=evaluation.num_examples,
            time_s=time.perf_counter() - started,
            macro_f1=evaluation.macro_f1,
            measured=dict(evaluation.measured),
            scores=dict(evaluation.scores),
        )
        # Adapters first: an evaluation that is in metrics.jsonl has its adapters, and a missing one is done again.
        with self._watch.writing(self.step):
            self.save(self.exported)
            if best_of([*self.evaluations, event]) is event:
                self.save(self.folder.best)
            if evaluation.samples:
                write_samples(self.folder.samples, event.step, evaluation.samples)
            self.metrics.append(event)
        self._watch.look_at_evaluation(event, self.evaluations[0])
        for callback in self.callbacks:
            callback.on_evaluate(event)

    def _is_done(self) -> bool:
        return self.step >= self.plan.num_steps or self.should_stop or self._has_stopped_improving()

    def _has_stopped_improving(self) -> bool:
        patience = self.plan.early_stopping_patience
        if patience is None or not self.evaluations:
            return False
        best = best_of(self.evaluations)
        return sum(event.step > best.step for event in self.evaluations) >= patience
