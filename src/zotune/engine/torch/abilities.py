"""What a model's own code can do beyond a forward pass: derivatives and gradients, found out by trying.

Kernels that were made for inference may raise, or pass zeros on and raise nothing; what is known of those is said
without a trial.
"""

from collections.abc import Callable

import numpy as np
from transformers import PreTrainedModel

from zotune.engine.torch.backward import checked_record
from zotune.engine.torch.layers import TrainedLayers
from zotune.engine.torch.lora import LoraLayers
from zotune.engine.torch.quantization import quantization_method
from zotune.zo.protocol import AT_THETA, Engine, Example, Probe, Theta

TRIAL = Example((2, 3), (4,), ((5,), (6,)))


def why_no_tangents(model: PreTrainedModel, layers: TrainedLayers, engine: Engine) -> str | None:
    """Why this model has no derivatives along directions, or None."""
    if not isinstance(layers, LoraLayers):
        return "only LoRA's matrices have derivatives here"
    if method := quantization_method(model.config):  # some of their operators would say 0 and no error
        return f"products with quantised weights ({method}) have no derivatives in forward mode"
    probe = Probe(2, 0.0, derivative=True)
    return _why_failed(
        model, engine, lambda theta: engine.score(theta, [probe], [TRIAL]), "derivatives in forward mode"
    )


def why_no_gradients(model: PreTrainedModel, layers: TrainedLayers, engine: Engine) -> str | None:
    """Why this model has no gradients by backpropagation, or None."""
    if layers.why_no_gradients:
        return layers.why_no_gradients
    method = quantization_method(model.config)
    if method not in (None, "bitsandbytes"):  # some kernels would pass nothing back, and raise no error
        return f"products with weights quantised by {method} are not known to pass gradients back"

    def work(theta: Theta) -> None:
        engine.score(theta, [AT_THETA], [TRIAL])  # after which some layers have weights packed for inference
        with checked_record(model):
            engine.gradient(theta, [TRIAL], lambda scores: np.ones(scores.num_tokens.shape))

    reason = _why_failed(model, engine, work, "gradients")
    if reason and method:
        dtype = str(model.dtype).removeprefix("torch.")
        return f"products with weights quantised by {method} pass no gradients back in {dtype} here"
    return reason


def _why_failed(model: PreTrainedModel, engine: Engine, work: Callable[[Theta], object], what: str) -> str | None:
    theta = {name: np.zeros(shape, dtype=np.float32) for name, shape in engine.tensor_shapes.items()}
    stats = vars(engine.stats).copy()
    try:
        work(theta)
    except Exception as error:  # whatever a model's own code raises over numbers that have derivatives
        return f"{type(model).__name__} does not compute {what} ({error})"
    finally:
        vars(engine.stats).update(stats)
    return None
