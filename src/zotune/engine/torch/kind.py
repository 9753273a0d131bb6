"""The engines on transformers' models in this process: the fast one, and the plain one that it is held to."""

from typing import Any

from zotune.engine.kind import EngineKind, EngineRequest, Settings
from zotune.errors import InputError
from zotune.zo.protocol import Engine


class TorchKind(EngineKind):
    """`torch`: transformers with exact reuse."""

    has_lens = lens_reaches_all = True

    def open(self, request: EngineRequest) -> Engine:
        from zotune.engine.torch.fast import TorchEngine
        from zotune.engine.torch.loading import free_memory_bytes
        from zotune.engine.torch.prefix_cache import PrefixCache

        model = request.loaded
        assert model is not None
        budget = free_memory_bytes(model.device) / 2 if request.kv_cache_gb is None else request.kv_cache_gb * 1e9
        return _started(TorchEngine(model, request.spec, PrefixCache(budget)), request)


class PlainKind(EngineKind):
    """`plain`: transformers without any reuse."""

    has_lens = lens_reaches_all = True

    def check(self, settings: Settings) -> None:
        if settings.kv_cache_gb is not None:
            raise InputError("--kv-cache-gb has no effect with --engine plain, which keeps no prompts; leave it out")

    def open(self, request: EngineRequest) -> Engine:
        from zotune.engine.torch.plain import PlainEngine

        assert request.loaded is not None
        return _started(PlainEngine(request.loaded, request.spec), request)


def _started(engine: Any, request: EngineRequest) -> Engine:
    """The engine, with what the request wants measured on the data."""
    from zotune.engine.torch.measured_start import measure_start

    try:
        measure_start(engine, request)
    except BaseException:
        engine.close()
        raise
    opened: Engine = engine
    return opened
