"""What a run measures on its data before it begins, as its start: LoRA's A (`eva.py`) and a lens (`lens_measuring.py`);
beside them, what a head that is trained starts from."""

import logging
import time
from typing import Any

from zotune.adapter.start import Start
from zotune.engine.kind import EngineRequest
from zotune.engine.torch.eva import STARTED, principal_components
from zotune.engine.torch.lens_measuring import measure_lens
from zotune.engine.torch.lora import LoraLayers
from zotune.engine.torch.soft_prompt import SoftPrompt

logger = logging.getLogger("zotune")


def measure_start(engine: Any, request: EngineRequest) -> None:
    """Measure what the request asks for, and start the engine's adapter from it; the log says how long it took."""
    if "eva" in request.measured:
        began = time.perf_counter()
        engine.layers.start_from(principal_components(engine, request.start_from, request.seed))
        logger.info(STARTED, time.perf_counter() - began)
    layers = engine.layers
    if isinstance(layers, LoraLayers | SoftPrompt) and layers.head.shapes:
        start = layers.spec.start.tensors if layers.spec.start else {}
        if not start.keys() >= layers.head.shapes.keys():
            layers.start_from(Start.of({**start, **layers.head.start(request.seed)}))
    if "lens" in request.measured:
        lens = measure_lens(engine, request.start_from, request.seed)
        if lens.through:
            start = engine.spec.start.tensors if engine.spec.start else {}
            engine.layers.start_from(Start.of({**start, **lens.tensors()}))
        engine.layers.lens = lens
