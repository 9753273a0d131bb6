"""The parts of a run: its task and records, the model that fits them, and what the configuration left open.

Everything that can be refused is refused here, the cheap things first: data before tokenizer, tokenizer before model.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from zotune.adapter.spec import LoraSpec, PromptSpec
from zotune.adapter.start import Start
from zotune.assemble.engine import AnyEngine, check_engine, make_engine, start_from_data
from zotune.config.defaults import arguments_of, choose_method, default_learning_rate, make_estimator, make_noise
from zotune.config.settings import Config, Scope, make_config
from zotune.data.records import Record, load_records, sample_records, split_records
from zotune.data.task_choice import choose_task
from zotune.data.tasks import Task
from zotune.data.templates import Encoder
from zotune.data.texts import to_texts
from zotune.engine.torch.loading import (
    choose_device,
    context_length,
    demo_path,
    empty_model,
    load_config,
    load_model,
    load_tokenizer,
    model_path,
)
from zotune.engine.torch.quantization import quantization_method
from zotune.errors import InputError
from zotune.zo.noise import layer_of
from zotune.zo.protocol import Example, TokenIds

HELD_OUT_SHARE = 0.1
MAX_DEFAULT_LENGTH = 2048
logger = logging.getLogger("zotune")


@dataclass(frozen=True)
class Data:
    """The task and the records of a run, before any model is there."""

    task: Task
    train: list[Record]
    evaluation: list[Record]


@dataclass(frozen=True)
class Parts:
    """Everything a trainer needs from data and model; `config` has what was left open filled in."""

    config: Config
    task: Task
    engine: AnyEngine
    tokenizer: Tokenizer
    train: list[Example]
    evaluation: list[Example]
    digests: dict[str, str]


def load_data(config: Config, train_data: Any = None, eval_data: Any = None) -> Data:
    check_engine(config)
    train_source = config.train_data if train_data is None else train_data
    eval_source = config.eval_data if eval_data is None else eval_data
    train = load_records(train_source, "--train-data") if train_source is not None else []
    sample = dict(train[0].fields) if train else None
    if sample:  # under the names that --fields gives them
        sample |= {role: sample.pop(name) for role, name in config.field_names.items() if name in sample}
    task = choose_task(
        config.task, template=config.template, invocation=config.invocation, labels=config.labels, sample=sample
    )
    own_train, own_eval = _own_data(task)
    if not train:
        if own_train is None:
            raise InputError(f"--train-data: task {task.name} has no data set of its own; name a file or data set")
        train = load_records(own_train, "--train-data", task.hub.train if task.hub else "train")
        eval_source = own_eval if eval_source is None else eval_source
    if eval_source is not None:
        split = task.hub.evaluation if task.hub and eval_source is own_eval else "test"
        evaluation = load_records(eval_source, "--eval-data", split)
    else:
        if len(train) < 2:
            raise InputError("--train-data: one record cannot be split; give --eval-data too")
        train, evaluation = split_records(train, HELD_OUT_SHARE, config.data_seed)
        logger.info("no evaluation data given: %d of the training records are held out for it", len(evaluation))
    train = sample_records(train, config.max_train_samples, config.data_seed, "train")
    if config.max_eval_samples and config.max_eval_samples < len(evaluation):
        logger.info("evaluating on %d of %d records (--max-eval-samples)", config.max_eval_samples, len(evaluation))
    evaluation = sample_records(evaluation, config.max_eval_samples, config.data_seed, "eval")
    for records in (train, evaluation):  # to refuse bad records before anything is loaded
        to_texts(records, task, config.field_names)
    return Data(task, train, evaluation)


def _own_data(task: Task) -> tuple[Any, Any]:
    if task.demo:
        return demo_path("train.jsonl"), demo_path("eval.jsonl")
    return task.hub, task.hub


def assemble(
    config: Config,
    data: Data,
    model: PreTrainedModel | None,
    tokenizer: Tokenizer | None,
    start: Start | None = None,
) -> Parts:
    """The parts of a run; with `start`, of one that began with it."""
    task = data.task
    prompt = PromptSpec(**arguments_of(PromptSpec, config)) if config.peft_type == "prompt_tuning" else None
    has_scopes = config.tuning == "lora" and not prompt
    scope: Scope = config.scope or ("activated" if task.invocation and has_scopes else "everywhere")
    if config.scope is None and has_scopes:
        reason = "the task has an invocation" if task.invocation else "the task has no invocation"
        logger.info("scope: %s (%s)", scope, reason)
    method = choose_method(config, scope)
    if any(getattr(config, name) is None for name in method):
        logger.info("method: %s", ", ".join(f"{name} {value}" for name, value in method.items()))
    config = make_config({"scope": scope, **method}, base=config)
    path = model_path(config.model)
    if model is not None and config.quantization_bits:
        raise InputError(
            f"--load-in-{config.quantization_bits}bit has no effect on a loaded model: quantise it as you load it, or "
            "give its folder or hub id"
        )
    tokenizer = tokenizer or load_tokenizer(path, config.trust_remote_code)
    model_config = model.config if model is not None else load_config(path, config.trust_remote_code)
    if config.tuning == "full" and (quantized := quantization_method(model_config)):
        raise InputError(f"--tuning full: {config.model} is quantised ({quantized}), and such weights stay as they are")
    max_length = choose_max_length(config.max_length, context_length(model_config))
    encoder = Encoder(
        tokenizer, task, max_length, activated=scope == "activated",
        virtual_tokens=prompt.virtual_tokens if prompt else (),
    )  # fmt: skip
    encoded = {}
    for split, records in (("training", data.train), ("evaluation", data.evaluation)):
        encoded[split] = encoder.encode(to_texts(records, task, config.field_names))
        if encoded[split].num_truncated:
            logger.info(
                "%d of %d %s prompts are longer than %d tokens and lose their beginning",
                encoded[split].num_truncated, len(records), split, max_length,
            )  # fmt: skip
    device = choose_device(config.device) if model is None else str(model.device)
    dtype: str = config.dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    if config.engine == "sglang":
        if model is not None:
            raise InputError("--engine sglang loads the model itself: give its folder or hub id, not the loaded model")
        num_parameters = empty_model(model_config, config.trust_remote_code).num_parameters()
    else:
        model = model or load_model(path, dtype, device, config.trust_remote_code, config.quantization_bits)
        num_parameters = model.num_parameters()
        dtype = str(model.dtype).removeprefix("torch.")
    spec = prompt or _spec(config, encoder.invocation if scope == "activated" else None)
    learning_rate = config.learning_rate or default_learning_rate(num_parameters, config.optimizer, config.tuning)
    if config.learning_rate is None:
        tuning = "prompt" if prompt else config.tuning
        logger.info("learning rate: %g (%s, %s tuning, size of the model)", learning_rate, config.optimizer, tuning)
    train, evaluation = encoded["training"].examples, encoded["evaluation"].examples
    chosen: dict[str, Any] = {
        "model": config.model if config.model == "demo" else _absolute(config.model),
        "task": task.name if config.task is not None or not config.labels else None,
        "train_data": _absolute(config.train_data),
        "eval_data": _absolute(config.eval_data),
        "noise": make_noise(config).kind,
        "num_virtual_tokens": prompt.num_virtual_tokens if prompt else None,
        "max_length": max_length,
        "learning_rate": learning_rate,
        "objective": config.objective or task.objective,
        "device": device,
        "dtype": dtype,
        "num_threads": torch.get_num_threads() if config.engine != "sglang" else None,
    }
    filled = make_config(chosen, base=config)
    _check_objective(filled, task)
    if config.init_lora_weights == "eva":
        assert isinstance(spec, LoraSpec)
        spec = replace(spec, start=start or start_from_data(filled, spec, model, train))
    assert config.directions is not None
    num_probes = len(make_estimator(config).ask(range(config.directions)))
    engine = make_engine(config, spec, device, dtype, model, num_probes)
    _check_blocks(config, engine)
    if config.estimator == "jvp" and (obstacle := engine.why_not("tangents")):
        engine.close()
        raise InputError(f"--estimator jvp: {obstacle}; use spsa, or another engine or model")
    return Parts(
        filled, task, engine, tokenizer, train, evaluation,
        digests={"training": _digest(train), "evaluation": _digest(evaluation)},
    )  # fmt: skip


def _spec(config: Config, invocation: TokenIds | None) -> LoraSpec | None:
    """The form of LoRA; None: the model's own parameters are trained."""
    if config.tuning == "full":
        return None
    assert config.peft_type
    return LoraSpec(
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        target_modules=config.target_modules,
        invocation_tokens=invocation,
        peft_type=config.peft_type,
        frozen_seed=0 if config.peft_type == "lora" else config.seed,
    )


def choose_max_length(asked: int | None, context: int | None) -> int:
    """`asked`, which must fit the model's context, or the context itself up to MAX_DEFAULT_LENGTH."""
    if asked is not None and context is not None and asked > context:
        raise InputError(f"--max-length {asked} is more than the model's context of {context} tokens")
    return asked or min(context or MAX_DEFAULT_LENGTH, MAX_DEFAULT_LENGTH)


def _check_objective(config: Config, task: Task) -> None:
    if (config.objective == "cross_entropy") != bool(task.labels):
        needs = "label words (--labels)" if config.objective == "cross_entropy" else "a completion, not labels"
        raise InputError(f"--objective {config.objective} needs {needs}; task {task.name} uses {task.objective}")


def _check_blocks(config: Config, engine: AnyEngine) -> None:
    blocks = config.noise_blocks or 1
    layers = {layer_of(name) for name in engine.tensor_shapes}
    if {layer % blocks for layer in layers} != set(range(blocks)):
        engine.close()
        raise InputError(
            f"--noise-blocks must leave each block a layer: {blocks} blocks of {len(layers)} adapted layers"
        )


def _digest(examples: Sequence[Example]) -> str:
    return hashlib.sha256(repr(examples).encode()).hexdigest()


def _absolute(name: str | None) -> str | None:
    """Local paths made independent of the working directory, so that a run can be resumed from anywhere."""
    return str(Path(name).expanduser().resolve()) if name and Path(name).expanduser().exists() else name
