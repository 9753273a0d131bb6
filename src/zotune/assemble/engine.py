"""The engine of a run, from its settings, and the start that a model gives it."""

import gc
import logging
import time

import torch
from transformers import PreTrainedModel

from zotune.adapter.spec import AdapterSpec, LoraSpec, PromptSpec
from zotune.adapter.start import Start
from zotune.config.settings import Config
from zotune.engine.pool import EnginePool
from zotune.engine.sglang.engine import SglangEngine
from zotune.engine.sglang.names import check as check_sglang
from zotune.engine.sglang.options import check_options
from zotune.engine.torch.eva import principal_components
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.loading import free_memory_bytes, load_config, load_model, model_path
from zotune.engine.torch.plain import PlainEngine
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.engine.torch.quantization import check_bitsandbytes
from zotune.errors import InputError
from zotune.zo.protocol import Example

logger = logging.getLogger("zotune")

AnyEngine = TorchEngine | PlainEngine | SglangEngine | EnginePool[SglangEngine]


def check_engine(config: Config) -> None:
    """Refuse an engine that is not there, or options that it does not have, before anything is loaded."""
    if config.engine == "sglang":
        check_sglang()
        check_options(config.sglang)
    if config.quantization_bits:
        check_bitsandbytes(f"--load-in-{config.quantization_bits}bit")


def start_from_data(config: Config, spec: LoraSpec, model: PreTrainedModel | None, train: list[Example]) -> Start:
    """A from the data; for SGLang, with a model that is loaded for this alone."""
    began = time.perf_counter()
    try:
        if model is None:
            assert config.device
            assert config.dtype
            model = load_model(model_path(config.model), config.dtype, config.device, config.trust_remote_code)
        start = principal_components(model, spec, train, config.seed, config.batch_size)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"--init-lora-weights eva: with transformers, {config.model} does not fit on {config.device}; use kaiming"
        ) from error
    finally:
        del model
        gc.collect()
        torch.cuda.empty_cache()
    logger.info("A starts from the principal components of each layer's inputs: %.1f s", time.perf_counter() - began)
    return start


def make_engine(
    config: Config,
    spec: AdapterSpec | None,
    device: str,
    dtype: str,
    model: PreTrainedModel | None = None,
    num_probes: int = 1,
) -> AnyEngine:
    """The engine that the configuration names, with its cache, for steps of `num_probes` probes; the model is loaded
    where it is not given."""
    path = model_path(config.model)
    if config.engine == "sglang":
        assert spec is not None
        if isinstance(spec, PromptSpec):
            raise InputError(
                "--engine sglang has no soft prompts (--peft-type prompt_tuning); use --engine torch or plain"
            )
        return _sglang_engine(config, spec, device, dtype, num_probes)
    model = model or load_model(path, dtype, device, config.trust_remote_code, config.quantization_bits)
    if config.engine == "plain":
        return PlainEngine(model, spec)
    budget = free_memory_bytes(model.device) / 2 if config.kv_cache_gb is None else config.kv_cache_gb * 1e9
    return TorchEngine(model, spec, PrefixCache(budget))


def _sglang_engine(
    config: Config, spec: LoraSpec, device: str, dtype: str, num_probes: int
) -> SglangEngine | EnginePool[SglangEngine]:
    """One engine, or for SGLang's dp_size a pool of as many, on devices side by side."""
    path, options = model_path(config.model), dict(config.sglang)
    num_engines = options.pop("dp_size", 1)
    num_gpus, first_gpu = options.get("tp_size", 1), options.get("base_gpu_id", 0)
    side_by_side = num_engines > 1 and device != "cpu"
    engines: list[SglangEngine] = []
    try:
        for index in range(num_engines):
            if side_by_side:
                options["base_gpu_id"] = first_gpu + index * num_gpus
            engines.append(SglangEngine(
                path, load_config(path, config.trust_remote_code), spec, dtype=dtype, device=device,
                num_probes=-(-num_probes // num_engines), trust_remote_code=config.trust_remote_code,
                options=options,
            ))  # fmt: skip
    except BaseException:
        for engine in engines:
            engine.close()
        raise
    return engines[0] if num_engines == 1 else EnginePool(engines)
