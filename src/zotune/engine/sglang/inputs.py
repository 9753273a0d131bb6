"""What goes into the adapted modules of SGLang's model, for LoRA's A to start from (`engine.torch.eva`)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from zotune.engine.sglang.jobs import VisitedTokens
from zotune.engine.sglang.slots import Slots
from zotune.engine.torch.eva import MAX_TOKENS


class InputWatch:
    """Sees the inputs of every adapted module, at the tokens that jobs have visited.

    Args:
        most: tokens of a job that are kept, drawn where there are more: every n-th may be the same word of the
            invocation.
    """

    def __init__(self, slots: Slots, most: int) -> None:
        self.slots, self.most = slots, most
        self._draw = np.random.default_rng(0)
        self._found: dict[nn.Module, list[torch.Tensor]] = {}
        self._index: torch.Tensor | None = None  # of those tokens among the tokens of the pass that runs, if any

    @contextmanager
    def open(self) -> Iterator[None]:
        self._found = {module: [] for module in self.slots.modules.values()}
        hooks = [module.register_forward_pre_hook(self._note) for module in self._found]
        try:
            yield
        finally:
            self._index = None
            for hook in hooks:
                hook.remove()

    def begin(self, found: Sequence[VisitedTokens]) -> None:
        """What the next pass computes."""
        kept = [self._draw.permutation(row.indices)[: self.most] for row in found if row.job.slot is not None]
        self._index = torch.from_numpy(np.concatenate(kept).astype(np.int64)) if any(map(len, kept)) else None

    def _note(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._index is not None:
            self._found[module].append(args[0][self._index.to(args[0].device)].clone())

    def of(self, name: str) -> np.ndarray:
        """What went into the module of a matrix A: [tokens, inputs], at most MAX_TOKENS of them, in float32."""
        tokens = torch.cat(self._found[self.slots.modules[name]])
        order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))[:MAX_TOKENS]
        found: np.ndarray = self.slots.whole_inputs(name, tokens[order.to(tokens.device)].float()).cpu().numpy()
        return found
