"""SGLang as a kind of engine: what it cannot serve, its options, and one engine or a pool of several."""

import logging
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zotune.engine.kind import EngineKind, EngineRequest, Settings
from zotune.engine.sglang import options as sglang_options
from zotune.engine.sglang.live.arrival import SOCKET
from zotune.engine.sglang.names import check
from zotune.errors import InputError, NoLens
from zotune.zo.protocol import Engine

if TYPE_CHECKING:
    from zotune.engine.sglang.engine import SglangEngine

logger = logging.getLogger("zotune")


class SglangKind(EngineKind):
    """`sglang`: SGLang's scheduler, LoRA slots and radix tree."""

    loads_model = True
    has_options = True
    has_lens = True

    def check(self, settings: Settings) -> None:
        if settings.tuning == "full":
            raise InputError(
                "--tuning full has no effect with --engine sglang, which trains adapters; use --engine torch"
            )
        if settings.tuning == "prompt_tuning":
            raise InputError("--engine sglang does not go with --tuning prompt_tuning; use --engine torch or plain")
        if settings.estimator in ("jvp", "backprop"):
            raise InputError(
                f"--estimator {settings.estimator}: SGLang's passes have no derivatives; use spsa, or another engine"
            )
        if settings.quantization is not None:
            raise InputError("--quantization has no effect with --engine sglang; use --sglang.quantization")
        if settings.kv_cache_gb is not None:
            raise InputError("--kv-cache-gb has no effect with --engine sglang; use --sglang.max-total-tokens")
        if settings.num_threads is not None:
            raise InputError(
                "--num-threads has no effect with --engine sglang; set OMP_NUM_THREADS, which SGLang reads"
            )
        if settings.device.startswith("mps"):
            raise InputError(f"--device {settings.device} does not go with --engine sglang; use cuda or cpu")

    def check_options(self, options: Mapping[str, Any]) -> None:
        sglang_options.check_options(options)

    def check_installed(self) -> None:
        check()

    def parse_option(self, name: str, values: list[str]) -> Any:
        return sglang_options.parse_value(name, values)

    def open(self, request: EngineRequest) -> Engine:
        from zotune.adapter.spec import PromptSpec
        from zotune.engine.sglang.engine import SglangEngine

        if request.loaded is not None:
            raise InputError("--engine sglang loads the model itself: give its folder or hub id, not the loaded model")
        if isinstance(request.spec, PromptSpec):
            raise InputError(
                "--engine sglang has no soft prompts (--tuning prompt_tuning); use --engine torch or plain"
            )
        if request.spec.selection.rank_pattern or request.spec.selection.alpha_pattern:
            raise InputError(
                "--engine sglang has one rank and one alpha for all modules, where the adapter has a rank_pattern or "
                "an alpha_pattern; use --engine torch or plain"
            )
        if "lens" in request.measured:
            _check_lens(request)
        server = os.environ.get(SOCKET)
        if server is not None:
            engine = SglangEngine(
                request.model, request.config, request.spec, dtype=request.dtype, device=request.device,
                num_probes=request.num_probes, trust_remote_code=request.trust_remote_code, server=server,
            )  # fmt: skip
            return _started([engine], request)
        options = dict(request.options)
        num_engines = options.pop("dp_size", 1)
        num_gpus, first_gpu = options.get("tp_size", 1), options.get("base_gpu_id", 0)
        engines: list[SglangEngine] = []
        try:
            for index in range(num_engines):
                if num_engines > 1 and request.device != "cpu":  # on devices side by side
                    options["base_gpu_id"] = first_gpu + index * num_gpus
                engines.append(SglangEngine(
                    request.model, request.config, request.spec, dtype=request.dtype, device=request.device,
                    num_probes=-(-request.num_probes // num_engines), trust_remote_code=request.trust_remote_code,
                    options=options,
                ))  # fmt: skip
        except BaseException:
            for engine in engines:
                engine.close()
            raise
        return _started(engines, request)


def _started(engines: "list[SglangEngine]", request: EngineRequest) -> Engine:
    """Them as one engine, whose A starts from the data where that is asked for."""
    from zotune.engine.pool import EnginePool
    from zotune.engine.torch.eva import STARTED

    try:
        if "eva" in request.measured:
            began = time.perf_counter()
            start = engines[0].principal_components(request.start_from, request.seed)
            for engine in engines:
                engine.start_from(start)
            logger.info(STARTED, time.perf_counter() - began)
    except BaseException:
        for engine in engines:
            engine.close()
        raise
    return engines[0] if len(engines) == 1 else EnginePool(engines)


def _check_lens(request: EngineRequest) -> None:
    """Refuse what has no gradients by the lens, before a model is read.

    Raises:
        NoLens: in a sentence that says why.
    """
    for option in ("quantization", "kv_cache_dtype"):
        if (kind := request.options.get(option)) not in (None, "auto"):
            name = option.replace("_", "-")
            raise NoLens(f"--estimator lens: it needs numbers as they are, not --sglang.{name} {kind}; use one_sided")
    if request.options.get("dp_size", 1) > 1:
        raise NoLens("--estimator lens: engines side by side (--sglang.dp-size) pass no gradients on; use one_sided")
    if not getattr(request.config, "do_layer_norm_before", True):
        raise NoLens("--estimator lens: with --engine sglang, its norms must come before attention; use one_sided")
