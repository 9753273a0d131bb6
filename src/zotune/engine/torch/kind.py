"""The engines on transformers' models in this process: the fast one, and the plain one that it is held to."""

from zotune.engine.kind import EngineKind, EngineRequest, Settings
from zotune.errors import InputError
from zotune.zo.protocol import Engine


class TorchKind(EngineKind):
    """`torch`: transformers with exact reuse."""

    def open(self, request: EngineRequest) -> Engine:
        from zotune.engine.torch.fast import TorchEngine
        from zotune.engine.torch.loading import free_memory_bytes
        from zotune.engine.torch.prefix_cache import PrefixCache

        model = request.loaded
        assert model is not None
        budget = free_memory_bytes(model.device) / 2 if request.kv_cache_gb is None else request.kv_cache_gb * 1e9
        return TorchEngine(model, request.spec, PrefixCache(budget))


class PlainKind(EngineKind):
    """`plain`: transformers without any reuse."""

    def check(self, settings: Settings) -> None:
        if settings.kv_cache_gb is not None:
            raise InputError("--kv-cache-gb has no effect with --engine plain, which keeps no prompts; leave it out")

    def open(self, request: EngineRequest) -> Engine:
        from zotune.engine.torch.plain import PlainEngine

        assert request.loaded is not None
        return PlainEngine(request.loaded, request.spec)
