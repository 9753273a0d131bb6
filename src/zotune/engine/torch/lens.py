"""The lens: it carries the loss's gradient at the last residual state back to the modules below, by a matrix each.

A forward pass gives the gradient g at the last state of a scored token exactly. What it is at the output of a module
further down is J' g, with the Jacobian J of the last state by that output at the same token. The lens has the mean of
J over examples, measured by perturbations (`lens_measuring.py`): a tuned lens (arXiv 2303.08112) in the other
direction. Only its action on the directions that gradients take at the top is kept.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from zotune.adapter.start import LENS, Start, has_lens

BASIS = f"{LENS}basis"
CARRIED = f"{LENS}carried."
ONE_TO_ONE = f"{LENS}one_to_one."


@dataclass(frozen=True)
class Lens:
    """Carries gradients of the last residual state back.

    `basis` [rank, width] is orthonormal, and `carried` [rank, outputs] of a module is what each of its rows becomes
    there. What lies outside the basis reaches the modules of `one_to_one`, which write into the stream, as it is.
    """

    basis: torch.Tensor
    carried: Mapping[str, torch.Tensor]
    one_to_one: frozenset[str]

    def back(self, gradients: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Gradients at the output of each module [n, outputs], from those at the last residual state [n, width]."""
        within = gradients @ self.basis.T
        outside = gradients - within @ self.basis
        for module, matrix in self.carried.items():
            found = within @ matrix
            yield module, found + outside if module in self.one_to_one else found

    def tensors(self) -> dict[str, np.ndarray]:
        """As they lie in a run's start."""
        found = {BASIS: self.basis} | {CARRIED + name: matrix for name, matrix in self.carried.items()}
        found |= {ONE_TO_ONE + name: torch.ones(1) for name in self.one_to_one}
        return {name: np.ascontiguousarray(value.cpu().numpy()) for name, value in found.items()}

    @classmethod
    def of(cls, start: Start | None, device: torch.device) -> "Lens | None":
        """The lens that a run's start has."""
        if start is None or not has_lens(start):
            return None
        found = {name: torch.from_numpy(value.copy()).to(device) for name, value in start.tensors.items()}
        carried = {name.removeprefix(CARRIED): value for name, value in found.items() if name.startswith(CARRIED)}
        return cls(
            found[BASIS], carried,
            frozenset(name.removeprefix(ONE_TO_ONE) for name in found if name.startswith(ONE_TO_ONE)),
        )  # fmt: skip
