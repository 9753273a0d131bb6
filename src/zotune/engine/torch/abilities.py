"""What a model's own code can do beyond a forward pass: derivatives and gradients, found out by trying.

Kernels that were made for inference may raise, or pass zeros on and raise nothing; what is known of those is said
without a trial.
"""

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from transformers import PreTrainedModel

from zotune.engine.torch.backward import checked_record
from zotune.engine.torch.layers import TrainedLayers
from zotune.engine.torch.lora import LoraLayers
from zotune.engine.torch.model_kind import is_classifier, sees_all
from zotune.engine.torch.quantization import quantization_method
from zotune.errors import first_line
from zotune.zo.protocol import AT_THETA, Engine, Example, Probe, Scores, Theta

TRIAL = Example((2, 3), (4,), ((5,), (6,)))
CLASSIFIER_TRIAL = Example((2, 3, 4), (), ((0,), (1,)), mask_at=0)
MASKED_TRIAL = Example((2, 3, 4), (), ((5,), (6,)), mask_at=1)


def why_no_tangents(model: PreTrainedModel, layers: TrainedLayers, engine: Engine) -> str | None:
    """Why this model has no derivatives along directions, or None."""
    if not isinstance(layers, LoraLayers):
        return "only LoRA's matrices have derivatives here"
    if method := quantization_method(model.config):  # some of their operators would say 0 and no error
        return f"products with quantised weights ({method}) have no derivatives in forward mode"
    probe = Probe(2, 0.0, derivative=True)
    return _why_failed(
        model,
        layers,
        engine,
        lambda theta: engine.score(theta, [probe], [_trial(model)]),
        "derivatives in forward mode",
    )


def why_no_gradients(model: PreTrainedModel, layers: TrainedLayers, engine: Engine) -> str | None:
    """Why this model has no gradients by backpropagation, or None."""
    if layers.why_no_gradients:
        return layers.why_no_gradients
    method = quantization_method(model.config)
    if method not in (None, "bitsandbytes"):  # some kernels would pass nothing back, and raise no error
        return f"products with weights quantised by {method} are not known to pass gradients back"

    def work(theta: Theta) -> None:
        engine.score(theta, [AT_THETA], [_trial(model)])  # after which some layers have weights packed for inference
        with checked_record(model, layers.head.modules if layers.head else ()):
            engine.gradient(theta, [_trial(model)], _of_sum)
        if why_no_tangents(model, layers, engine) is None:
            with engine.in_float32() or nullcontext():  # rounding would hide what is left out
                _check_whole(
                    theta, engine, _trial(model), 0.01 if model.dtype in (torch.float32, torch.float64) else 0.3
                )

    reason = _why_failed(model, layers, engine, work, "gradients")
    if reason and method:
        dtype = str(model.dtype).removeprefix("torch.")
        return f"products with weights quantised by {method} pass no gradients back in {dtype} here"
    return reason


def _trial(model: PreTrainedModel) -> Example:
    if is_classifier(model):
        return CLASSIFIER_TRIAL
    return MASKED_TRIAL if sees_all(model) else TRIAL


def _of_sum(scores: Scores) -> np.ndarray:
    """The cotangents of the sum of all log-probabilities."""
    return np.ones(scores.num_tokens.shape)


def _check_whole(theta: Theta, engine: Engine, trial: Example, tolerance: float) -> None:
    """Some models cut their record of a pass, for cheaper training; forward mode does not see that."""
    _, gradient = engine.gradient(theta, [trial], _of_sum)
    probe = Probe(2, 0.0, derivative=True)
    tangents = engine.score(theta, [probe], [trial]).tangents
    assert tangents is not None
    slope = float(tangents.sum())
    along = sum(float((gradient[name] * z).sum()) for name, z in probe.noise.direction(probe.seed, theta).items())
    if abs(along - slope) > tolerance * abs(slope):
        raise TypeError(
            f"its own code leaves a part out: {along:.4g} along a direction whose derivative is {slope:.4g}"
        )


def _why_failed(
    model: PreTrainedModel, layers: TrainedLayers, engine: Engine, work: Callable[[Theta], object], what: str
) -> str | None:
    theta, _ = layers.trial()
    stats = vars(engine.stats).copy()
    try:
        work(theta)
    except Exception as error:  # whatever a model's own code raises over numbers that have derivatives
        return f"{type(model).__name__} does not compute {what} ({first_line(error)})"
    finally:
        vars(engine.stats).update(stats)
    return None
