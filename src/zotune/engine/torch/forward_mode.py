"""Derivatives of scores along directions, in forward mode: a pass carries its values and how they change with theta.

With theta + t z in place of theta every number of the pass becomes a pair of its value and its derivative by t at 0
(dual numbers: Wengert, 1964; for fine-tuning: Baydin et al., 2022, arXiv 2202.08587). PyTorch's `jvp` has the rule of
every operation, `vmap` takes all directions through one pass, which computes the values once. There is no eps and
nothing is kept for a way back. LoRA's matrices, and a head beside them, have derivatives to begin with.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from zotune.engine.torch.kept_product import KeptWeights
from zotune.engine.torch.lora import LoraLayers
from zotune.zo.protocol import Probe, Theta


def values_and_tangents(
    lora: LoraLayers, theta: Theta, probes: Sequence[Probe], compute: Callable[[], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `compute` gives under theta, and its derivatives along the probes' directions, which lead its shape.

    Args:
        compute: runs the model on one slot of `lora`.
    """
    assert all(probe.derivative and not probe.distance and probe.base is None for probe in probes)
    lora.write([theta])
    primals = {**lora.tensors, **lora.head.tensors}

    def put(tensors: dict[str, torch.Tensor]) -> None:
        lora.tensors = {name: tensors[name] for name in lora.matrices}
        lora.head.tensors = {name: tensors[name] for name in lora.head.shapes}

    def computed(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        put(tensors)
        with KeptWeights():
            return compute()

    def differentiated(tangents: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        pair: tuple[torch.Tensor, torch.Tensor] = torch.func.jvp(computed, (primals,), (tangents,))  # type: ignore[assignment]
        return pair

    moved = lora.tangents([probe.noise.direction(probe.seed, theta) for probe in probes])
    directions = {name: moved[name] for name in primals}  # in one order, which `jvp` asks for
    try:
        # Inference mode knows no derivatives.
        with torch.inference_mode(False), torch.no_grad():
            values, tangents = torch.func.vmap(differentiated)(directions)
    finally:
        put(primals)
    return values[0], tangents


@contextmanager
def differentiable(model: PreTrainedModel, attention: bool = True) -> Iterator[None]:
    """The model's mixtures of experts, and its attention, are made of operations that all have rules."""
    before = model.config._attn_implementation, getattr(model.config, "_experts_implementation", None)
    if attention:
        model.set_attn_implementation("eager")
    if before[1] is not None:
        model.set_experts_implementation("batched_mm")
    try:
        yield
    finally:
        model.set_attn_implementation(before[0])
        if before[1] is not None:
            model.set_experts_implementation(before[1])
