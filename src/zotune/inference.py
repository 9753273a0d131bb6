"""Use an adapter, or the bare model: metrics over labelled data, a label or completion for each input."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from zotune.adapter.peft_files import load_adapter
from zotune.adapter.spec import LoraSpec
from zotune.assemble.engine import check_engine, make_engine
from zotune.assemble.parts import choose_max_length, load_data
from zotune.config.settings import Config, make_config, read_toml
from zotune.data.records import Record, load_records, sample_records
from zotune.data.task_choice import choose_task
from zotune.data.tasks import Task
from zotune.data.templates import Encoder, encode_fragment
from zotune.data.texts import to_texts
from zotune.engine.torch.loading import (
    choose_device,
    context_length,
    demo_path,
    load_config,
    load_model,
    load_tokenizer,
    model_path,
)
from zotune.errors import InputError
from zotune.run.trainer import Evaluation
from zotune.run.trainer import evaluate as evaluate_examples
from zotune.zo.objectives import OBJECTIVES, candidate_logits
from zotune.zo.protocol import AT_THETA, Engine, Sampling, Theta

logger = logging.getLogger("zotune")
BARE = LoraSpec(rank=1, alpha=1.0, target_modules=())


def evaluate(
    eval_data: Any = None,
    *,
    adapter: str | Path | None = None,
    max_eval_samples: int | None = None,
    **settings: Any,
) -> Evaluation:
    """Loss and accuracy of an adapter (or of the bare model) on labelled data, with the predictions.

    Args:
        eval_data: a path, hub id, list of dicts or `datasets.Dataset`; default: that of the adapter's run, or the
            task's own.
        adapter: an adapter folder. Beside a run's config.toml, its settings are the defaults.
        settings: model, task, template, invocation, labels, fields, max_length, dtype, device, ... as in `Config`.

    Raises:
        InputError: something asked for cannot be done.
    """
    config = _config(adapter, settings)
    task = _task(config)
    split = "test"
    if eval_data is None:
        eval_data = config.eval_data
    if eval_data is None and config.train_data is not None:  # what the adapter's run has held out of it
        eval_data = [record.fields for record in load_data(config).evaluation]
    elif eval_data is None and task.hub:
        eval_data, split = task.hub, task.hub.evaluation
    elif eval_data is None and task.demo:
        eval_data = demo_path("eval.jsonl")
    elif eval_data is None:
        raise InputError(f"--eval-data: task {task.name} has no data set of its own; name a file or data set")
    records = sample_records(load_records(eval_data, "--eval-data", split), max_eval_samples, config.data_seed, "eval")
    texts = to_texts(records, task, config.field_names)
    predictor = _load(config, task, adapter)
    try:
        examples = predictor.encoder.encode(texts).examples
        objective = OBJECTIVES[config.objective or task.objective]
        return evaluate_examples(predictor.engine, predictor.theta, objective, examples)
    finally:
        predictor.engine.close()


def predict(
    data: Any,
    *,
    adapter: str | Path | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    **settings: Any,
) -> list[str]:
    """The label word of each input of a classification, or the generated completion of each prompt.

    Args:
        data: as for `evaluate`; labels or completions need not be there. Strings are taken as the task's first field.
        temperature: 0 generates greedily, else samples.

    Raises:
        InputError: something asked for cannot be done.
    """
    config = _config(adapter, settings)
    task = _task(config)
    if not task.labels and not task.template:
        raise InputError(f"--task: {task.name} has nothing to predict; use a classification or completion")
    if max_new_tokens < 1:
        raise InputError(f"--max-new-tokens must be 1 or more, got {max_new_tokens}")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise InputError(f"--temperature must be 0 or more, got {temperature}")
    role = next((name for name in task.fields if name != "completion"), "prompt")
    if isinstance(data, Sequence) and not isinstance(data, str):
        data = [{config.field_names.get(role, role): item} if isinstance(item, str) else item for item in data]
    records: list[Record] = load_records(data, "--data", "test")
    texts = to_texts(records, task, config.field_names, need_labels=False)
    predictor = _load(config, task, adapter, num_new_tokens=0 if task.labels else max_new_tokens)
    try:
        engine, theta = predictor.engine, predictor.theta
        examples = predictor.encoder.encode(texts).examples
        if task.labels:
            guesses = candidate_logits(engine.score(theta, [AT_THETA], examples))[0].argmax(axis=-1)
            return [task.label_words[guess] for guess in guesses]
        tokenizer = predictor.encoder.tokenizer
        stop = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        sampling = Sampling(max_new_tokens, temperature, config.seed, stop)
        (completions,) = engine.generate(theta, [AT_THETA], examples, sampling)
        return [str(tokenizer.decode(list(token_ids), skip_special_tokens=True)) for token_ids in completions]
    finally:
        predictor.engine.close()


@dataclass(frozen=True)
class _Predictor:
    engine: Engine
    theta: Theta
    encoder: Encoder


def _config(adapter: str | Path | None, settings: dict[str, Any]) -> Config:
    """The settings given, over those of the run that the adapter lies in, where it does."""
    run = Path(adapter).resolve().parent / "config.toml" if adapter is not None else None
    base = read_toml(run) if run and run.is_file() else None
    given = {name: value for name, value in settings.items() if value is not None and value != {}}
    if base and given.get("engine", base.engine) != base.engine:
        bits = base.quantization_bits
        if given["engine"] == "sglang" and bits:
            logger.warning("the run's --load-in-%dbit is not for SGLang; see --sglang.quantization", bits)
            base = replace(base, load_in_4bit=False, load_in_8bit=False)
        base = replace(base, engine=given["engine"], num_threads=None, kv_cache_gb=None, sglang={})
    if base and (given.get("load_in_4bit") or given.get("load_in_8bit")):  # one takes the place of the other
        base = replace(base, load_in_4bit=False, load_in_8bit=False)
    if base and given.get("task", base.task) != base.task:  # another task comes with texts and data of its own
        base = replace(
            base, template=None, invocation=None, labels=(), objective=None, fields=(), train_data=None, eval_data=None
        )
    return make_config(given, base)


def _task(config: Config) -> Task:
    return choose_task(config.task, template=config.template, invocation=config.invocation, labels=config.labels)


def _load(config: Config, task: Task, adapter: str | Path | None, num_new_tokens: int = 0) -> _Predictor:
    check_engine(config)
    theta, spec = load_adapter(Path(adapter)) if adapter is not None else ({}, BARE)
    path = model_path(config.model)
    tokenizer = load_tokenizer(path, config.trust_remote_code)
    context = context_length(load_config(path, config.trust_remote_code))
    max_length = choose_max_length(config.max_length, context)
    if context is not None and num_new_tokens >= context:
        raise InputError(
            f"--max-new-tokens {num_new_tokens} leaves no room for a prompt in a context of {context} tokens"
        )
    room = max_length if context is None else min(max_length, context - num_new_tokens)
    if spec.invocation_tokens not in (None, encode_fragment(tokenizer, task.invocation)):
        raise InputError(
            f"--invocation: {task.invocation!r} is not what the adapter {adapter} is switched on by: "
            f"{tokenizer.decode(list(spec.invocation_tokens or ()))!r}"
        )
    encoder = Encoder(tokenizer, task, room, activated=spec.scope == "activated", virtual_tokens=spec.virtual_tokens)
    device = choose_device(config.device)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    dtype = config.dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    bits = config.quantization_bits
    model = load_model(path, dtype, device, config.trust_remote_code, bits) if config.engine != "sglang" else None
    try:
        engine = make_engine(config, spec, device, dtype, model)
    except InputError as error:
        if "--target-modules" not in str(error):
            raise
        raise InputError(f"--adapter: {adapter} was made for another model than {config.model}: {error}") from error
    if {name: value.shape for name, value in theta.items()} != engine.tensor_shapes:
        engine.close()
        raise InputError(f"--adapter: {adapter} was made for another model than {config.model}: its tensors do not fit")
    return _Predictor(engine, theta, encoder)
