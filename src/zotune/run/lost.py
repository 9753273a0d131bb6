"""What a run folder has lost of a run that its journal still holds: measurements, and the adapter of the best of them.

A power cut, a bad disk or a hand may take metrics.jsonl, or its end, and `best/`. The journal gives the steps again,
and theta where evaluations belong, which are done again. Times and counters are lost: they are 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from zotune.run.evaluation import evaluate
from zotune.run.folder import RunFolder
from zotune.run.journal import Entry
from zotune.run.metrics import EvalEvent, StepEvent, best_of, read_metrics, write_metrics
from zotune.run.own_metrics import OwnMetrics
from zotune.run.trainer import Export
from zotune.zo.objectives import Objective
from zotune.zo.protocol import Engine, Example, Theta


@dataclass(frozen=True)
class Evaluator:
    """What an evaluation of a run is made with, and how often there is one."""

    engine: Engine
    objective: Objective
    examples: Sequence[Example]
    eval_steps: int
    metrics: OwnMetrics | None = None


class Lost:
    """Of one run; theta is shown to `look_at` as it was after each step, in their order, and `write` comes last."""

    def __init__(self, folder: RunFolder, evaluator: Evaluator, export: Export, num_steps: int) -> None:
        self.folder, self.evaluator, self.export, self.num_steps = folder, evaluator, export, num_steps
        self.events = read_metrics(folder.metrics) if folder.metrics.is_file() else []
        self.events = [event for event in self.events if event.step <= num_steps]
        self._measured = {event.step for event in self.events if isinstance(event, StepEvent)}
        self._changed = False

    @property
    def _evaluations(self) -> list[EvalEvent]:
        return [event for event in self.events if isinstance(event, EvalEvent)]

    def has_evaluation(self, step: int) -> bool:
        """Whether an evaluation after that step was lost.

        It was written before the step that follows, so where that is measured there was none: how often a run is
        looked at may change. One after the last step is for the trainer to do.
        """
        return (
            bool(self.evaluator.examples)
            and step < self.num_steps
            and step % self.evaluator.eval_steps == 0
            and step + 1 not in self._measured
            and all(event.step != step for event in self._evaluations)
        )

    def needs(self, step: int) -> bool:
        """Whether theta after that step has to be looked at."""
        return self.has_evaluation(step) or any(event.step == step for event in self._evaluations)

    def look_at(self, step: int, theta: Theta) -> None:
        """Evaluate theta again where that was lost, and keep it where it is the best and `best/` is something else."""
        if self.has_evaluation(step):
            made = self.evaluator
            found = evaluate(made.engine, theta, made.objective, made.examples, metrics=made.metrics)
            event = EvalEvent(step, "eval", found.accuracy, found.loss, found.num_examples, 0.0)
            event = replace(event, measured=dict(found.measured), scores=dict(found.scores))
            self.events.append(replace(event, macro_f1=found.macro_f1))
            self._changed = True
        evaluations = sorted(self._evaluations, key=lambda event: event.step)
        if evaluations and best_of(evaluations).step == step and not self.export.is_saved(self.folder.best, theta):
            self.export.save(self.folder.best, theta)

    def write(self, entries: Sequence[Entry]) -> None:
        """Put what was found again into metrics.jsonl, with the steps of the journal that are not in it.

        Raises:
            OSError: the disk refused; the file is as it was.
        """
        for entry in entries:
            if entry.step not in self._measured:
                slopes = tuple(slope.value for slope in entry.slopes)
                self.events.append(StepEvent(entry.step, entry.loss, entry.learning_rate, slopes, 0.0, 0, 0, 0))
                self._changed = True
        if self._changed:
            in_order = sorted(self.events, key=lambda event: (event.step, event.event == "eval"))
            write_metrics(self.folder.metrics, in_order)
