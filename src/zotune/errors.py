"""The ways a run can be refused or end early, all with a message written for the user.

Every other exception is a defect of this package and keeps its traceback.
"""


class InputError(ValueError):
    """What was asked for cannot be done; the message names the option, or the file and line. Exit code 2."""


class NoLens(InputError):
    """The model has no lens, so that another estimator must be taken."""


class TrainingError(RuntimeError):
    """Training had to stop (diverged, disk full); the journal up to the last whole step is kept. Exit code 1."""


class RewardError(TrainingError):
    """A reward function gave no usable answer; the message names the reward and the record."""


class DiskError(TrainingError):
    """Training had to stop because the disk refused: this says nothing of the run, which goes on once there is room."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
