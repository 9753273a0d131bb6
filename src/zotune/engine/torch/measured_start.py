"""What a run measures on its data before it begins, as its start: LoRA's A (`eva.py`) and a lens (`lens_measuring.py`);
beside them, what a head that is trained starts from.

An engine that keeps a model of its own, as SGLang's does, has A measured with transformers' model, which is given back
before its own is loaded.
"""

import gc
import logging
import time
from typing import Any

import torch

from zotune.adapter.start import Start
from zotune.engine.kind import EngineRequest
from zotune.engine.torch.eva import principal_components
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.lens_measuring import measure_lens
from zotune.engine.torch.loading import load_model
from zotune.engine.torch.lora import LoraLayers
from zotune.errors import InputError

logger = logging.getLogger("zotune")


def measure_start(engine: Any, request: EngineRequest) -> None:
    """Measure what the request asks for, and start the engine's adapter from it; the log says how long it took."""
    if "eva" in request.measured:
        began = time.perf_counter()
        engine.layers.start_from(principal_components(engine, request.start_from, request.seed))
        took = time.perf_counter() - began
        logger.info("A starts from the principal components of each layer's inputs: %.1f s", took)
    layers = engine.layers
    if isinstance(layers, LoraLayers) and layers.head.shapes:
        start = layers.spec.start.tensors if layers.spec.start else {}
        if not start.keys() >= layers.head.shapes.keys():
            layers.start_from(Start.of({**start, **layers.head.start(request.seed)}))
    if "lens" in request.measured:
        lens = measure_lens(engine, request.start_from, request.seed)
        if lens.through:
            start = engine.spec.start.tensors if engine.spec.start else {}
            engine.layers.start_from(Start.of({**start, **lens.tensors()}))
        engine.layers.lens = lens


def start_alone(request: EngineRequest) -> Start | None:
    """The same with a model that is loaded for this alone.

    Raises:
        InputError: transformers' model does not fit on the device.
    """
    try:
        return _start_of_loaded(request)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"--init-lora-weights eva: with transformers, {request.model} does not fit on {request.device}; use kaiming"
        ) from error
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def _start_of_loaded(request: EngineRequest) -> Start | None:
    model = load_model(request.model, request.dtype, request.device, request.trust_remote_code, request.quantization)
    engine = TorchEngine(model, request.spec)
    try:
        measure_start(engine, request)
        spec: Any = engine.spec
        start: Start | None = spec.start
        return start
    finally:
        engine.close()
