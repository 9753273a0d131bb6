"""Gradients by backpropagation: one pass forward with a record of what it did, and one back along the record.

An engine knows no losses. It gives the scores, is told how a loss changes with each log-probability (the cotangents),
and answers how the loss changes with each number of theta: a vector-Jacobian product, in reverse mode (Linnainmaa,
1970). Nothing of the base model gets a gradient. A batch that is more than one pass is scored first, without a
record: what is held for the way back is that of one pass, however many there are.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from zotune.engine.torch.layers import TrainedLayers
from zotune.zo.protocol import Cotangents, Scores, Theta


@dataclass(frozen=True)
class Part:
    """What one pass does of a batch.

    Args:
        compute: runs the model; gives the log-probabilities of candidates' tokens [token].
        places: int [token, 2], each one's example and candidate.
        scores: makes the batch's scores of what `compute` gave; asked only of a part that is the whole batch.
    """

    compute: Callable[[], torch.Tensor]
    places: np.ndarray
    scores: Callable[[torch.Tensor], Scores]


def scores_and_gradient(
    model: PreTrainedModel,
    layers: TrainedLayers,
    theta: Theta,
    parts: Sequence[Part],
    score: Callable[[], Scores],
    cotangents: Cotangents,
) -> tuple[Scores, Theta]:
    """Scores at theta, and the gradient of sum(cotangents * log_probs) for every tensor of theta, in float32.

    Args:
        score: scores the whole batch, where it has several parts.
    """
    scores = score() if len(parts) > 1 else None
    gradient = {name: np.zeros(shape, dtype=np.float32) for name, shape in layers.shapes.items()}
    with torch.inference_mode(False), torch.enable_grad(), frozen(model), _folded_head(model):
        for part in parts:
            leaves = layers.place_leaves(theta)
            log_probs = part.compute()
            scores = scores or part.scores(log_probs.detach())
            weights = cotangents(scores)[part.places[:, 0], part.places[:, 1]]
            found = torch.autograd.grad(
                log_probs, list(leaves.values()), torch.from_numpy(weights).to(log_probs), allow_unused=True
            )
            for name, tensor in zip(leaves, found, strict=True):
                if tensor is not None:  # what reaches no score, as the last layer's queries of a prompt, has none
                    gradient[name] += tensor.cpu().numpy()
    assert scores is not None
    return scores, gradient


@contextmanager
def checked_record(model: PreTrainedModel, but: Container[nn.Module] = ()) -> Iterator[None]:
    """Inside, a linear layer, `but` those, that passes no gradient back raises. A kernel that was made for inference
    alone would say zero and no error."""

    def check(module: nn.Module, args: tuple[torch.Tensor, ...], output: Any) -> None:
        inputs = args[0]
        if not inputs.requires_grad or not inputs.numel() or not torch.is_tensor(output):  # routers give more
            return
        found: torch.Tensor | None = None
        if output.requires_grad:
            (found,) = torch.autograd.grad(
                output, inputs, torch.ones_like(output), retain_graph=True, allow_unused=True
            )
        if found is None or not found.any():
            raise TypeError(f"its layers of type {type(module).__name__} pass none back in {inputs.dtype}")

    linear = [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D) and module not in but]
    hooks = [module.register_forward_hook(check, prepend=True) for module in linear]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """The model's own parameters ask for no gradients: the record then keeps no inputs of their products."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _folded_head(model: PreTrainedModel) -> Iterator[None]:
    """Inputs of the language-model head lie side by side: of a slice of them, as models cut the scored positions out,
    PyTorch would make a product for each row, and in bfloat16 on a CPU a copy of the head's weights for each."""
    head = model.get_output_embeddings()
    if head is None:  # a classifier's
        yield
        return
    hook = head.register_forward_pre_hook(lambda module, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        hook.remove()
