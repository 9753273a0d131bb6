"""What of a model is trained, and how probes of it get into a forward pass: as slots of LoRA or of a
soft prompt, or in the weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch

from zotune.engine.torch.row_groups import RowGroups
from zotune.engine.torch.trained_head import TrainedHead
from zotune.zo.protocol import Probe, Theta


class SharedInput(TypeError):
    """A module of several probes is called with what belongs to none of them, as relative positions are."""


class TrainedLayers(ABC):
    """The trained modules of one model, from now until `remove`.

    How the tokens of a pass lie: as [num_groups, probes, the rest], or, where `rows` are given, in rows that each
    belong to a probe; `token_mask` [rows, tokens] keeps an adapter to some of them; with `active` false the model is
    the base model. Nothing of it matters where weights move. `adapted` [rows, tokens] are the tokens that are no
    padding, of those that an adapter is kept to. `num_tokens`, where given, are those of a pass, and those of it that
    reach the head: a module of several probes that is called with others is refused. With `float_stream` what a module
    gives need not be rounded to its precision.
    """

    shapes: dict[str, tuple[int, ...]]
    head: TrainedHead | None = None  # of a classifier, beside an adapter
    max_probes: int | None = None  # of one pass
    why_no_gradients: str | None = None

    def __init__(self) -> None:
        self.active = True
        self.num_groups = 1
        self.rows: RowGroups | None = None
        self.token_mask: torch.Tensor | None = None
        self.adapted: torch.Tensor | None = None
        self.num_tokens: tuple[int, int] | None = None
        self.float_stream = False

    @abstractmethod
    def place(self, theta: Theta, probes: Sequence[Probe]) -> None:
        """Make `probes` the points of the next forward passes."""

    def place_leaves(self, theta: Theta) -> dict[str, torch.Tensor]:
        """Make theta the point of the next passes, as tensors to differentiate by, which are returned by name."""
        raise TypeError(self.why_no_gradients)

    @abstractmethod
    def trial(self) -> tuple[Theta, list[Probe]]:
        """Some theta, and probes of it, to try a model out with."""

    def settle(self, run: Callable[[], object]) -> None:  # noqa: B027  # most have nothing to find out
        """Find out by a pass, which `run` makes at the trial's last probe, how the model reads what is trained."""

    @abstractmethod
    def remove(self) -> None:
        """Leave the model as it was."""
