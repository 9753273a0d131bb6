"""What stands in for attention that cannot be computed again: how a small change of what goes into a block changes what
its attention gives, on average over examples.

The way back through everything else is exact (`visits.py`), and through most attention, too (`looks.py`). For the rest
there is a matrix J, the mean Jacobian at the same token, measured by perturbations (`lens_measuring.py`). Gradients g
at what attention gives become J' g at the block's input.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from zotune.adapter.start import LENS, Start, has_lens

THROUGH = f"{LENS}through."
WITHIN = f"{LENS}within."
AS_IT_IS = f"{LENS}as_it_is."

Factors = tuple[torch.Tensor, ...]
"""A matrix [outputs, inputs] as a product, from the left to the right; none: the identity."""


@dataclass(frozen=True)
class Lens:
    """Carries gradients at the output of attention back.

    Args:
        through: by the number of the block, to the block's input.
        within: by the names of adapted modules that lie inside attention, to their outputs.
    """

    through: Mapping[int, Factors]
    within: Mapping[str, Factors]

    def tensors(self) -> dict[str, np.ndarray]:
        """As they lie in a run's start."""
        factors = {f"{THROUGH}{index}": found for index, found in self.through.items()}
        factors |= {f"{WITHIN}{name}": found for name, found in self.within.items()}
        found = {f"{name}.{k}": matrix for name, some in factors.items() for k, matrix in enumerate(some)}
        found |= {f"{AS_IT_IS}{name}": torch.ones(1) for name, some in self.within.items() if not some}
        return {name: np.ascontiguousarray(value.cpu().numpy()) for name, value in found.items()}

    @classmethod
    def of(cls, start: Start | None, device: torch.device) -> "Lens | None":
        """The lens that a run's start has."""
        if start is None or not has_lens(start):
            return None
        through: dict[int, Factors] = {}
        within: dict[str, Factors] = {}
        for name in sorted(start.tensors):
            if name.startswith(AS_IT_IS):
                within[name.removeprefix(AS_IT_IS)] = ()
            elif name.startswith(LENS):
                matrix, of = torch.from_numpy(start.tensors[name].copy()).to(device), name.rpartition(".")[0]
                if of.startswith(THROUGH):
                    index = int(of.removeprefix(THROUGH))
                    through[index] = (*through.get(index, ()), matrix)
                else:
                    module = of.removeprefix(WITHIN)
                    within[module] = (*within.get(module, ()), matrix)
        return cls(through, within)


def carried(gradients: torch.Tensor, factors: Factors) -> torch.Tensor:
    """Gradients [n, outputs] become [n, inputs]."""
    for matrix in factors:
        gradients = gradients @ matrix
    return gradients
