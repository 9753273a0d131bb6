"""Looks at a run as it goes, ends it where going on leads nowhere, and says what helps: losses that are no numbers,
steps that are too long, slopes that are all zero, too little memory, a full disk.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from zotune.engine.memory import is_out_of_memory
from zotune.errors import DiskError, RewardError, TrainingError
from zotune.run.metrics import EvalEvent, MetricsFile
from zotune.zo.estimators import Estimate
from zotune.zo.protocol import Theta
from zotune.zo.schedules import Schedule

MAX_ZERO_STEPS = 10
LONG_STEP = 10.0  # times the distance of the probes, which is as far as a slope was seen to hold
WORSE = 0.05  # of the loss at the beginning: less above it is what an early evaluation may well have
logger = logging.getLogger("zotune")


class Watch:
    """Of one run.

    Args:
        folder, metrics: the run's, where it is kept and what was measured.
        epsilon, dtype: how far probes look, and the precision of the model.
        sizes: the options that memory goes by, with what they are.
    """

    def __init__(
        self, folder: Path, metrics: MetricsFile, schedule: Schedule, epsilon: float, dtype: str | None, sizes: str
    ) -> None:
        self.folder, self.metrics, self.schedule = folder, metrics, schedule
        self.epsilon, self.dtype, self.sizes = epsilon, dtype, sizes
        self._zero_steps = 0
        self._has_warned = False

    def check(self, step: int, estimate: Estimate) -> None:
        """Look at what the step after `step` has found.

        Raises:
            TrainingError: the losses are no numbers, or every slope has been zero for a while and no reward is the
                reason.
        """
        if not math.isfinite(estimate.loss) or not estimate.update.is_finite:
            raise TrainingError(
                f"the loss became {estimate.loss} at step {step + 1}: {self._remedy(step)}. {self._kept(step)}"
            )
        self._zero_steps = self._zero_steps + 1 if estimate.update.is_zero else 0
        if self._zero_steps < MAX_ZERO_STEPS:
            return
        first = next((event.loss for event in self.metrics.events), estimate.loss)
        if estimate.measured:  # a reward may be seldom, and the next batch may have it
            if self._zero_steps == MAX_ZERO_STEPS:
                logger.warning(
                    "for %d steps every probe had the same reward, so that nothing was learnt: raise --epsilon, or "
                    "--temperature with --num-generations, or give part of the reward for part of the way",
                    MAX_ZERO_STEPS,
                )
            return
        if is_worse(estimate.loss, first):
            help = f"the loss went from {first:.4f} to {estimate.loss:.4f}: {self._lower_rate(step)}"
        else:
            help = "raise --epsilon, use --dtype float32, or adapt other modules with --target-modules"
        raise TrainingError(
            f"every slope was zero for {MAX_ZERO_STEPS} steps, so the probes cannot be told apart: {help}. "
            f"{self._kept(step)}"
        )

    def check_evaluation(self, step: int, loss: float) -> None:
        """Raises:
        TrainingError: the loss is no number.
        """
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss on the evaluation data is {loss} after {step} steps: {self._remedy(step)}. "
                f"{self._kept(step)}"
            )

    def look_at_evaluation(self, now: EvalEvent, first: EvalEvent) -> None:
        """Warn of a run that has lost what it began with."""
        if is_worse(now.loss, first.loss) and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "the loss on the evaluation data is %.4f after %d steps, above the %.4f that it began with: %s",
                now.loss, now.step, first.loss, self._lower_rate(now.step),
            )  # fmt: skip

    def look_at_step(self, step: int, before: Theta, after: Theta) -> None:
        """Warn of steps that go far beyond where their slopes were measured; looked at now and then."""
        if before is after or step & (step - 1):  # theta is the model itself; no power of two
            return
        length = step_length(before, after)
        if length > LONG_STEP * self.epsilon and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "step %d moved theta by %.2g a number, where probes look %g far (--epsilon): --learning-rate %g is "
                "likely too high", step, length, self.epsilon, self.schedule(step - 1),
            )  # fmt: skip

    @contextmanager
    def computing(self, step: int) -> Iterator[None]:
        """While the model computes, after `step` steps: what memory refuses ends the run in words."""
        try:
            yield
        except RewardError as error:
            raise RewardError(f"{error}. {self._kept(step)}") from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                f"out of memory after step {step}: begin anew with a lower {self.sizes}, or make room and go on with: "
                f"zotune resume {self.folder}. {self._kept(step)}"
            ) from error

    @contextmanager
    def writing(self, step: int) -> Iterator[None]:
        """While the run is written, after `step` steps: what the disk refuses ends the run in words."""
        try:
            yield
        except OSError as error:
            raise DiskError(
                f"cannot write {error.filename or self.folder}: {error.strerror}. The run is kept up to step {step}; "
                f"make room and go on with: zotune resume {self.folder}"
            ) from error

    def _remedy(self, step: int) -> str:
        return remedy(self.dtype, self._highest_rate(step) if step else None)

    def _lower_rate(self, step: int) -> str:
        return f"lower --learning-rate (its highest was {self._highest_rate(step):g})"

    def _highest_rate(self, step: int) -> float:
        return max(map(self.schedule, range(step + 1)))

    def _kept(self, step: int) -> str:
        return f"The run is kept up to step {step} in {self.folder}."


def remedy(dtype: str | None, learning_rate: float | None = None) -> str:
    """What helps where a loss is no finite number; `learning_rate` is the highest of a run whose theta has moved."""
    if dtype == "float16":
        also = "" if learning_rate is None else f", or lower --learning-rate (its highest was {learning_rate:g})"
        return f"float16 ends at 65,504; use --dtype bfloat16 or float32{also}"
    if learning_rate is None:
        return "the weights of --model give it before any training; are they whole?"
    also = "" if dtype in (None, "float32") else ", or use --dtype float32"
    return f"theta has diverged; lower --learning-rate (its highest was {learning_rate:g}){also}"


def step_length(before: Theta, after: Theta) -> float:
    """How far a step moved a number of theta, as a root mean square."""
    with np.errstate(all="ignore"):  # theta may have diverged
        total = sum(float(np.square(after[name] - value, dtype=np.float64).sum()) for name, value in before.items())
    return math.sqrt(total / max(1, sum(value.size for value in before.values())))


def is_worse(now: float, first: float) -> bool:
    """Whether a loss is well above what it began with."""
    return now > first + WORSE * abs(first)
