"""Ray as a kind of engine: its options, what it cannot serve, and the kind that its workers have."""

import importlib.util
from collections.abc import Mapping
from typing import Any

from zotune.engine.kind import EngineKind, EngineRequest, Settings
from zotune.engine.ray.options import RayOptions, parse_value
from zotune.errors import InputError
from zotune.zo.protocol import Engine


class RayKind(EngineKind):
    """`ray`: workers on the machines of a cluster, each with an engine of a kind in `kinds`."""

    loads_model = True  # in the workers
    has_options = True

    def __init__(self, kinds: Mapping[str, EngineKind]) -> None:
        self.kinds = kinds

    def computing(self, tables: Mapping[str, Mapping[str, Any]]) -> EngineKind:
        return self.kinds[self._options(tables).engine]

    def device(self, asked: str, tables: Mapping[str, Mapping[str, Any]]) -> str:
        """Ray gives each worker its own GPUs, so that there is no number; this machine may have none."""
        wants = self._options(tables).num_gpus_per_worker
        if asked == "auto" and wants is None:
            return super().device(asked, tables).partition(":")[0]
        return ("cuda" if wants else "cpu") if asked == "auto" else asked

    def check(self, settings: Settings) -> None:
        options = self._options(settings.tables)
        if settings.tuning == "full":
            raise InputError("--tuning full does not go with --engine ray, whose workers follow an adapter")
        if settings.num_threads is not None:
            raise InputError("--num-threads has no effect with --engine ray; use --ray.num-cpus-per-worker")
        if settings.device not in ("auto", "cpu", "cuda"):
            raise InputError(
                f"--device {settings.device} does not go with --engine ray: Ray gives each worker its own; use cuda"
            )
        if settings.device == "cpu" and options.num_gpus_per_worker:
            raise InputError("--ray.num-gpus-per-worker has no effect with --device cpu; leave one of them out")
        if settings.device == "cuda" and options.num_gpus_per_worker == 0:
            raise InputError("--device cuda needs --ray.num-gpus-per-worker above 0")
        self.kinds[options.engine].check(settings)

    def check_options(self, options: Mapping[str, Any]) -> None:
        RayOptions.of(options, tuple(self.kinds))

    def check_installed(self) -> None:
        if importlib.util.find_spec("ray") is None:
            raise InputError('--engine ray needs Ray: pip install "zotune[ray]"')

    def parse_option(self, name: str, values: list[str]) -> Any:
        return parse_value(name, values)

    def open(self, request: EngineRequest) -> Engine:
        from zotune.engine.ray.engine import RayEngine

        if request.loaded is not None:
            raise InputError("--engine ray loads the model in its workers: give its folder or hub id")
        options = self._options(request.tables)
        return RayEngine(request, options, self.kinds[options.engine])

    def _options(self, tables: Mapping[str, Mapping[str, Any]]) -> RayOptions:
        return RayOptions.of(tables.get("ray", {}), tuple(self.kinds))
