"""LoRA's A from the data: the principal components of what goes into each adapted module.

EVA (Paischer et al., 2024, arXiv 2410.07170), without its shifting of ranks between modules. A row of A then reads what
differs most between the tokens that the adapter acts on, and a random change of B moves the output by more of it:
to directions drawn at random that matters most. It takes forward passes alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from peft.utils.incremental_pca import IncrementalPCA
from torch import nn
from transformers import PreTrainedModel

from zotune.adapter.forms import initial_theta
from zotune.adapter.spec import LoraSpec, tensor_name
from zotune.adapter.start import Start
from zotune.engine.torch.plain import PlainEngine
from zotune.engine.torch.targets import resolve_targets
from zotune.zo.protocol import AT_THETA, Example

NUM_EXAMPLES = 256
MAX_TOKENS = 256  # of one forward pass: a decomposition of more takes long


def principal_components(
    model: PreTrainedModel, spec: LoraSpec, examples: Sequence[Example], seed: int, batch_size: int = 16
) -> Start:
    """A [rank, inputs] of each adapted module: the first principal components, as orthonormal rows, of its inputs in
    the base model at the tokens that the adapter acts on, of NUM_EXAMPLES examples, evenly taken, a batch at a time.

    Where there are fewer components than the rank, the other rows are drawn from `seed`, as A is elsewhere.

    Raises:
        FloatingPointError: a module's inputs are not finite.
    """
    examples = examples[:: max(1, len(examples) // NUM_EXAMPLES)][:NUM_EXAMPLES]
    if spec.scope == "everywhere":  # the engine's token mask then marks all of a row but its padding
        examples = [replace(e, prompt=(), invocation=e.prompt + e.invocation) for e in examples]
    engine = PlainEngine(model, replace(spec, peft_type="lora", invocation_tokens=()))
    engine.layers.active = False
    theta = initial_theta(engine.tensor_shapes, seed)
    hooks, found = [], {}
    for name, module in resolve_targets(model, spec)[1].items():
        drawn = theta[tensor_name(name, "A")]
        found[tensor_name(name, "A")] = components = _Components(name, min(drawn.shape), drawn)
        hooks.append(module.register_forward_pre_hook(partial(_observe, engine, components)))
    try:
        for first in range(0, len(examples), batch_size):
            engine.score(theta, [AT_THETA], examples[first : first + batch_size])
    finally:
        for hook in hooks:
            hook.remove()
        engine.close()
    return Start.of({name: components.rows() for name, components in found.items()})


def _observe(engine: PlainEngine, components: "_Components", module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
    assert engine.layers.token_mask is not None
    tokens = args[0].reshape(-1, args[0].shape[-1])[engine.layers.token_mask.reshape(-1)].float()
    if len(tokens) > MAX_TOKENS:  # at random: every n-th may be the same word of the invocation
        tokens = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))[:MAX_TOKENS]]
    components.add(tokens)


class _Components:
    """Principal components [at most `number`, inputs] of tokens that come in pieces of any size, over `drawn`."""

    def __init__(self, module_name: str, number: int, drawn: np.ndarray) -> None:
        self.module_name = module_name
        self.number = number
        self.drawn = drawn
        self.waiting: list[torch.Tensor] = []
        self.pca: Any = None

    def add(self, tokens: torch.Tensor) -> None:
        if not tokens.isfinite().all():
            raise FloatingPointError(f"the inputs of {self.module_name} are no numbers")
        self.waiting.append(tokens)
        if sum(map(len, self.waiting)) > self.number:
            self._fit(self.number)

    def rows(self) -> np.ndarray:
        if self.pca is None and (count := sum(map(len, self.waiting)) - 1) > 0:  # centred, so one fewer than tokens
            self._fit(count)
        rows = self.drawn.copy()
        if self.pca is not None:
            found = self.pca.components_.cpu().numpy()
            rows[: len(found)] = found
        return rows

    def _fit(self, number: int) -> None:
        self.pca = self.pca or IncrementalPCA(n_components=number)
        self.pca.partial_fit(torch.cat(self.waiting))
        self.waiting.clear()
