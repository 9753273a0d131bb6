"""The model of a run, found before its weights are read, and the engine that is opened around it.

Training, evaluation, prediction and the tools all open a model here.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from zotune.adapter.spec import AdapterSpec
from zotune.config.defaults import SMALL_MODEL
from zotune.config.machine import free_cores
from zotune.config.run import Facts
from zotune.config.settings import Config
from zotune.data.chat import with_template
from zotune.data.demo import demo_path
from zotune.data.tasks import Task
from zotune.engine import ENGINES
from zotune.engine.kind import EngineRequest, Measured
from zotune.engine.torch.blocks import attention_names, writer_names
from zotune.engine.torch.gguf import converted, is_gguf, smollm2_file
from zotune.engine.torch.loading import (
    context_length,
    empty_model,
    load_config,
    load_generation_config,
    load_model,
    load_tokenizer,
    masked_context_length,
)
from zotune.engine.torch.model_kind import is_classifier, is_masked_config, sees_all
from zotune.engine.torch.precision import half_speedup
from zotune.engine.torch.quantization import check_bitsandbytes, quantization_method
from zotune.engine.torch.targets import usual_targets
from zotune.errors import InputError
from zotune.run.watch import remedy
from zotune.zo.protocol import Engine, Example, TokenIds

logger = logging.getLogger("zotune")


@dataclass(frozen=True)
class Model:
    """A model whose weights are not read yet, or that the user has loaded (`loaded`)."""

    path: str
    config: PretrainedConfig
    tokenizer: Tokenizer
    loaded: PreTrainedModel | None
    trust_remote_code: bool
    num_labels: int | None = None
    """Of a classification head, where it is to have one."""

    @cached_property
    def structure(self) -> PreTrainedModel:
        """Its modules and the shapes of its weights, without the weights unless they are loaded."""
        if self.loaded is not None:
            return self.loaded
        return empty_model(self.config, self.trust_remote_code, self.num_labels)

    @property
    def is_masked(self) -> bool:
        """Whether its tokens see the whole text, as those of masked language models do, and of no causal one."""
        return is_masked_config(self.config) if self.loaded is None else sees_all(self.loaded)

    @property
    def task_type(self) -> str | None:
        """PEFT's word for what it does; there is none for masked language models."""
        if not self.is_masked:
            return "CAUSAL_LM"
        return None if self.num_labels is None else "SEQ_CLS"

    @property
    def context(self) -> int | None:
        """The most tokens it takes, where its configuration says."""
        return masked_context_length(self.structure) if self.is_masked else context_length(self.config)

    @property
    def num_embeddings(self) -> int | None:
        """How many tokens it has embeddings for, where its configuration says."""
        return getattr(self.config.get_text_config(), "vocab_size", None)

    @property
    def stop_token_ids(self) -> TokenIds:
        """The tokens that end a text: the tokenizer's, and those that the model's generation settings name."""
        if self.loaded is not None:
            settings = self.loaded.generation_config
        else:
            settings = load_generation_config(self.path, self.config)
        ends = getattr(settings, "eos_token_id", None)
        listed = ends if isinstance(ends, list) else [ends]
        return tuple(dict.fromkeys(token for token in (self.tokenizer.eos_token_id, *listed) if token is not None))


def check_installed(config: Config) -> None:
    """Refuse an engine or a library that is not there, before anything is read."""
    ENGINES[config.engine].check_installed()
    if config.quantization:
        check_bitsandbytes(f"--quantization {config.quantization}")


def model_path(model: str) -> str:
    """The name to load a model by.

    Raises:
        InputError: the model of a name that zotune knows is not installed, or a GGUF file cannot be read.
    """
    if model == "demo":
        return demo_path("model")
    if model == "smollm2":
        return converted(smollm2_file())
    return converted(Path(model)) if is_gguf(model) else model


def find_model(
    config: Config,
    loaded: PreTrainedModel | None = None,
    tokenizer: Tokenizer | None = None,
    task: Task | None = None,
) -> Model:
    """The configuration and the tokenizer of the model that `config` names, or that the user has loaded.

    Args:
        task: whose labels a classification head is over.
    """
    path, trust = model_path(config.model), config.trust_remote_code
    if loaded is not None and config.quantization:
        raise InputError(
            f"--quantization {config.quantization} has no effect on a loaded model: quantise it as you load it, or "
            "give its folder or hub id"
        )
    if loaded is not None and ENGINES[config.engine].loads_model:
        raise InputError(
            f"--engine {config.engine} loads the model itself: give its folder or hub id, not the loaded model"
        )
    tokenizer = with_template(tokenizer or load_tokenizer(path, trust), config.chat_template)
    found = load_config(path, trust) if loaded is None else loaded.config
    if ENGINES[config.engine].computing(config.tables).loads_model and is_masked_config(found):
        raise InputError(
            f"--engine {config.engine}: {config.model} is a masked model, which it has not; use --engine torch"
        )
    return Model(path, found, tokenizer, loaded, trust, _num_labels(config, task, found, loaded))


def _num_labels(
    config: Config, task: Task | None, found: PretrainedConfig, loaded: PreTrainedModel | None
) -> int | None:
    if config.head == "lm" or task is None:
        return None
    if not (is_masked_config(found) if loaded is None else sees_all(loaded)):
        raise InputError(
            f"--head classification: {config.model} is a causal model, which has its own head; leave it out"
        )
    if not task.labels:
        raise InputError(f"--head classification: task {task.name} has no labels")
    if loaded is not None and not (is_classifier(loaded) and loaded.config.num_labels == len(task.labels)):
        raise InputError(
            f"--head classification: the loaded model is no classifier of {len(task.labels)} labels "
            "(AutoModelForSequenceClassification); load it so, or give its folder or hub id"
        )
    return len(task.labels)


def facts_of(model: Model, config: Config) -> Facts:
    """What settings are chosen by."""
    loaded, opened = model.loaded, ENGINES[config.engine]
    kind = opened.computing(config.tables)
    num_parameters = model.structure.num_parameters()
    device = opened.device(config.device, config.tables) if loaded is None else str(loaded.device)
    measured = config.dtype is None and loaded is None and not kind.loads_model and config.tuning != "full"
    writers = _writers(model, asked=config.estimator == "lens") if kind.has_lens else None
    return Facts(
        num_parameters=num_parameters,
        context=model.context,
        quantization=quantization_method(model.config),
        device=device,
        dtype=None if loaded is None else str(loaded.dtype).removeprefix("torch."),
        num_threads=None if opened.loads_model else config.num_threads or _choose_threads(device),
        half_speedup=half_speedup() if measured and device == "cpu" and num_parameters >= SMALL_MODEL else None,
        writers=writers,
        masked=model.is_masked,
        usual_targets=usual_targets(model.structure),
        activated_writers=_activated_writers(model, writers, kind.lens_reaches_all) if writers else None,
    )


def _writers(model: Model, asked: bool) -> tuple[str, ...] | None:
    """The modules that a lens adapts by default; None: the model has no blocks whose modules it could reach.

    Raises:
        InputError: that, where a lens is asked for.
    """
    try:
        return writer_names(model.structure)
    except TypeError as error:
        if asked:
            raise InputError(f"--estimator lens: {error}; name --target-modules, or take another estimator") from error
        return None


def _activated_writers(model: Model, writers: tuple[str, ...], reaches_all: bool) -> tuple[str, ...] | None:
    """Those that PEFT can run in an activated adapter; where some are left out, all of attention in their place."""
    try:
        within = writer_names(model.structure, within_parts=True)
        return within if within == writers or not reaches_all else attention_names(model.structure)
    except TypeError:
        return None


def _choose_threads(device: str) -> int:
    """As PyTorch or the environment chooses; but threads that share a core with another process wait for each other at
    every product, so cores that are in use elsewhere are left alone."""
    threads = torch.get_num_threads()
    if device != "cpu" or threads == 1 or "OMP_NUM_THREADS" in os.environ:
        return threads
    free, cores = free_cores()
    if free < cores:
        logger.info("num_threads: %d (of %d cores; the others are in use by other processes)", free, cores)
    return min(threads, free)


def open_engine(
    model: Model,
    settings: Config,
    spec: AdapterSpec | None,
    *,
    num_probes: int = 1,
    start_from: Sequence[Example] = (),
    measured: frozenset[Measured] = frozenset(),
) -> Engine:
    """Read the weights and open the engine that `settings` name; they say device and dtype too.

    Args:
        spec: the form of the adapter; None: the model's own parameters.
        num_probes: how many probes a step has.
        start_from, measured: examples, and what is measured on them at the start.
    """
    assert settings.dtype
    kind, loaded = ENGINES[settings.engine], model.loaded
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    if loaded is None and not kind.loads_model:
        loaded = _load(model, settings)
    request = EngineRequest(
        model.path, model.config, spec, settings.dtype, settings.device, num_probes, settings.trust_remote_code,
        settings.kv_cache_gb, settings.tables.get(settings.engine, {}), loaded, start_from, measured,
        settings.seed, settings.quantization, model.num_labels, settings.tables,
    )  # fmt: skip
    try:
        return kind.open(request)
    except FloatingPointError as error:  # of a start from data
        raise InputError(f"{error}: {remedy(settings.dtype)}") from error


def _load(model: Model, settings: Config) -> PreTrainedModel:
    assert settings.dtype
    return load_model(
        model.path, settings.dtype, settings.device, settings.trust_remote_code, settings.quantization,
        model.num_labels, head_seed=settings.seed if settings.tuning == "full" else None,
    )  # fmt: skip
