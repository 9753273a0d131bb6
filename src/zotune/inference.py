"""Use an adapter, or the bare model: metrics over labelled data, a label or completion for each input."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from zotune.adapter.base import read_base
from zotune.adapter.peft_files import base_model_of
from zotune.adapter.spec import AdapterSpec, LoraSpec
from zotune.assemble.adapter import Adapter
from zotune.assemble.data import check_used, load_data, load_demonstrations, own_data, task_of
from zotune.assemble.encoding import make_encoder
from zotune.assemble.model import Model, check_installed, facts_of, find_model, open_engine
from zotune.assemble.parts import encode_texts
from zotune.assemble.rewards import RewardFuncs, names_of, open_rewards, reopened
from zotune.config.ranges import MANY, checked_temperature
from zotune.config.reading import make_config, read_run_config
from zotune.config.run import choose_max_length, default_dtype, make_metrics, make_objective
from zotune.config.settings import Config
from zotune.data.chat import in_words
from zotune.data.records import load_records, sample_records
from zotune.data.tasks import Task
from zotune.data.texts import TextExample, expand, to_texts
from zotune.engine import ENGINES
from zotune.engine.memory import is_out_of_memory
from zotune.errors import InputError
from zotune.rewards.weighted import Rewards
from zotune.run.evaluation import Evaluation
from zotune.run.evaluation import evaluate as evaluate_examples
from zotune.run.own_metrics import ComputeMetrics
from zotune.run.scores import exact_match, mean_best, token_f1
from zotune.run.watch import remedy
from zotune.values import path_of, whole_of
from zotune.zo.objectives import RewardObjective, candidate_logits
from zotune.zo.protocol import AT_THETA, Engine, Example, Sampling, Theta

logger = logging.getLogger("zotune")
MOST_NEW_TOKENS = 2**20
MOST_ANSWER_TOKENS = 50
BARE = LoraSpec(rank=1, alpha=1.0, target_modules=())


def evaluate(
    eval_data: Any = None,
    *,
    adapter: str | Path | None = None,
    max_eval_samples: int | None = None,
    reward_funcs: RewardFuncs | None = None,
    compute_metrics: ComputeMetrics | None = None,
    **settings: Any,
) -> Evaluation:
    """Loss and scores of an adapter (or of the bare model) on labelled data, with the predictions.

    A classification has accuracy and macro F1. For squad and drop, answers are generated greedily up to a line break,
    and have exact match and token F1.

    Args:
        eval_data: a path, hub id, list of dicts or `datasets.Dataset`; default: that of the adapter's run, or the
            task's own.
        adapter: an adapter folder. Beside a run's config.toml, its settings are the defaults.
        reward_funcs: what judges the texts that the model writes, as of `mezo_finetune`; where the adapter's run has
            rewards that are code, they are named again.
        compute_metrics: as for `mezo_finetune`.
        settings: model, task, template, invocation, labels, fields, max_length, dtype, device, ... as in `Config`.

    Raises:
        InputError: something asked for cannot be done.
    """
    if max_eval_samples is not None:
        whole_of(max_eval_samples, "--max-eval-samples", 1, MANY)
    reward_funcs = reward_funcs or settings.pop("reward", None)
    config = _config(adapter, settings | ({"reward": names_of(reward_funcs)} if reward_funcs else {}))
    if not reward_funcs:
        config = reopened(config, None, f"as in --reward {' '.join(config.reward)}")
    source = config.eval_data if eval_data is None else _checked_path(eval_data, "--eval-data")
    if source is None and config.eval_strategy == "no":
        raise InputError(
            "--eval-data: the adapter's run held nothing out (--eval-strategy no); name data to evaluate it on"
        )
    if source is None and adapter is not None and not _says_task(config) and not config.train_data:
        raise InputError(
            f"--eval-data: the adapter {adapter} lies outside its run, so name the data to evaluate it on, or a --task"
        )
    with open_rewards(config, reward_funcs) or nullcontext() as judge:
        return _evaluated(config, source, adapter, max_eval_samples, settings, judge, compute_metrics)


def _evaluated(
    config: Config,
    source: Any,
    adapter: str | Path | None,
    max_eval_samples: int | None,
    settings: dict[str, Any],
    judge: Rewards | None,
    compute_metrics: ComputeMetrics | None = None,
) -> Evaluation:
    task, texts = _labelled(config, source, max_eval_samples)
    demonstrations = _demonstrations(config, task, adapter, settings)
    objective = make_objective(config, task)
    room = MOST_ANSWER_TOKENS if task.answers_field else 0
    if isinstance(objective, RewardObjective):
        room = objective.sampling.max_new_tokens
    metrics = make_metrics(config, task, compute_metrics)
    room = max(room, metrics.num_new_tokens)
    predictor = _load(config, task, adapter, texts, demonstrations, num_new_tokens=room)
    with _using(predictor, config):
        objective = objective.prepared(predictor.model.tokenizer)
        if isinstance(objective, RewardObjective):
            objective = objective.judged_by(judge, predictor.model.stop_token_ids)
        metrics = metrics.prepared(predictor.model.tokenizer, predictor.model.stop_token_ids)
        found = evaluate_examples(predictor.engine, predictor.theta, objective, predictor.examples, metrics=metrics)
        if not math.isfinite(found.loss):
            raise FloatingPointError(f"the loss is {found.loss}")
        if task.answers_field is None or judge:
            return found
        answers = [text.partition("\n")[0].strip() for text in _generated(predictor, MOST_ANSWER_TOKENS, 0.0, 0)]
        golds = [text.columns[task.answers_field] for text in texts]
        return replace(
            found, predictions=tuple(answers), exact_match=mean_best(exact_match, answers, golds),
            token_f1=mean_best(token_f1, answers, golds),
        )  # fmt: skip


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
    if not _says_task(config) and config.model != "demo":
        raise InputError("--task: say what to predict, e.g. --task completion, or --labels for a classification")
    task = task_of(config, [])
    if not task.classifies and not task.template:
        raise InputError(f"--task: {task.name} has nothing to predict; use a classification or completion")
    max_new_tokens = whole_of(max_new_tokens, "--max-new-tokens", 1, MOST_NEW_TOKENS)
    temperature = checked_temperature(temperature)
    role = task.prompt_fields[0]
    source = _checked_path(data, "--data")
    records = load_records(source, "--data", "test", text_field=config.field_names.get(role, role))
    records = expand(records, task, config.field_names)
    check_used(records, task, config)
    texts = to_texts(records, task, config.field_names, need_labels=False)
    demonstrations = _demonstrations(config, task, adapter, settings)
    predictor = _load(
        config, task, adapter, texts, demonstrations, num_new_tokens=0 if task.classifies else max_new_tokens
    )
    with _using(predictor, config):
        engine, theta, examples = predictor.engine, predictor.theta, predictor.examples
        if task.classifies:
            logits = candidate_logits(engine.score(theta, [AT_THETA], examples))[0]
            if not np.isfinite(logits.max(axis=-1)).all():
                raise FloatingPointError("the scores of the labels are no numbers")
            answers = logits.argmax(axis=-1)
            words = [text.choices or task.label_words for text in texts]
            return [of_text[answer] for of_text, answer in zip(words, answers, strict=True)]
        return _generated(predictor, max_new_tokens, temperature, config.seed)


def _generated(predictor: "_Predictor", max_new_tokens: int, temperature: float, seed: int) -> list[str]:
    """What the model goes on with behind each prompt."""
    model = predictor.model
    sampling = Sampling(max_new_tokens, temperature, seed, model.stop_token_ids)
    (completions,) = predictor.engine.generate(predictor.theta, [AT_THETA], predictor.examples, sampling)
    return [str(model.tokenizer.decode(list(token_ids), skip_special_tokens=True)) for token_ids in completions]


@contextmanager
def _using(predictor: "_Predictor", config: Config) -> Iterator[None]:
    """Close the engine at the end; say what helps where its numbers are none, or memory is too small."""
    try:
        yield
    except FloatingPointError as error:
        raise InputError(f"{error}: {remedy(config.dtype)}") from error
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise InputError("out of memory: lower --max-length, or take a smaller --dtype or --model") from error
    finally:
        predictor.engine.close()


def _says_task(config: Config) -> bool:
    return config.task is not None or bool(config.labels or config.choice_fields)


def _checked_path(data: Any, option: str) -> Any:
    """Data as they were given, a path as text."""
    return path_of(data, option) if isinstance(data, str | PathLike) else data


def _demonstrations(config: Config, task: Task, adapter: str | Path | None, settings: dict[str, Any]) -> str:
    """What stands before every prompt: as the adapter was trained, unless a number is asked for."""
    if adapter is None or settings.get("num_demonstrations") is not None:
        return load_demonstrations(config, task)
    base = read_base(Path(adapter))
    return base.demonstrations if base else ""


def _labelled(config: Config, source: Any, limit: int | None) -> tuple[Task, list[TextExample]]:
    """The task, and the evaluation records in its words."""
    if source is None and (
        config.train_data is not None or config.num_per_class is not None
    ):  # what the adapter's run has held out of it
        data = load_data(config)
        return data.task, sample_records(data.evaluation, limit, config.data_seed, "eval")
    records = [] if source is None else load_records(source, "--eval-data", "test")
    task = task_of(config, records)
    if records:
        records = expand(records, task, config.field_names)
        check_used(records, task, config)
    else:
        _, own = own_data(task)
        if own is None:
            raise InputError(f"--eval-data: task {task.name} has no data set of its own; name a file or data set")
        records = load_records(own, "--eval-data", task.hub.evaluation if task.hub else "test")
        records = expand(records, task, config.field_names)
    records = sample_records(records, limit, config.data_seed, "eval")
    return task, to_texts(records, task, config.field_names)


@dataclass(frozen=True)
class _Predictor:
    engine: Engine
    theta: Theta
    examples: list[Example]
    model: Model


def _config(adapter: str | Path | None, settings: dict[str, Any]) -> Config:
    """The settings given, over those of the run that the adapter lies in, where it does."""
    if adapter is not None:
        path_of(adapter, "--adapter")
    run = Path(adapter).resolve().parent / "config.toml" if adapter is not None else None
    base = read_run_config(run) if run and run.is_file() else None
    given = {name: value for name, value in settings.items() if value is not None and value != {}}
    if adapter is not None and base is None and "model" not in given:
        named = base_model_of(Path(adapter))
        if named is None:
            raise InputError(f"--model: the adapter {adapter} does not name the model that it is for")
        given["model"] = named
    if given.get("quantization") == "none":  # the base model as it is, where the adapter's run quantised it
        del given["quantization"]
        base = base and replace(base, quantization=None)
    if base and given.get("engine", base.engine) != base.engine:
        if base.quantization and ENGINES[given["engine"]].computing(given.get("tables", {})).loads_model:
            logger.warning(
                "the run's --quantization %s is not for --engine %s, which has options of its own",
                base.quantization, given["engine"],
            )  # fmt: skip
            base = replace(base, quantization=None)
        tables = {name: table for name, table in base.tables.items() if name not in ENGINES}
        base = replace(base, engine=given["engine"], num_threads=None, kv_cache_gb=None, tables=tables)
    if base and given.get("task", base.task) != base.task:  # another task comes with texts and data of its own
        base = replace(
            base, template=None, invocation=None, labels=(), choice_fields=(), label_separator=None, objective=None,
            fields=(), train_data=None, eval_data=None, num_per_class=None,
        )  # fmt: skip
    return make_config(given, base)


@dataclass(frozen=True)
class Opened:
    """A model that computes, with its adapter; `spec` is that of the bare model where there is none."""

    engine: Engine
    theta: Theta
    spec: AdapterSpec
    model: Model


def open_adapter(adapter: str | Path | None, bare: AdapterSpec, settings: dict[str, Any]) -> Opened:
    """An adapter, or the bare model, for whatever texts.

    Args:
        bare: the form of an adapter of nothing.
        settings: model, engine, dtype, device, ... as for `evaluate`.

    Raises:
        InputError: something asked for cannot be done.
    """
    config = _config(adapter, settings)
    check_installed(config)
    given = Adapter.read(adapter) if adapter is not None else None
    config = replace(config, device=ENGINES[config.engine].device(config.device, config.tables))
    model = find_model(config)
    facts = facts_of(model, config)
    config = replace(config, dtype=config.dtype or default_dtype(facts)[0], num_threads=facts.num_threads)
    spec = given.spec if given else bare
    engine = open_engine(model, config, spec)
    if given:
        given.warn_of_other_weights(engine, config)
    return Opened(engine, given.theta if given else {}, spec, model)


def _load(
    config: Config,
    task: Task,
    adapter: str | Path | None,
    texts: Sequence[TextExample],
    demonstrations: str,
    num_new_tokens: int = 0,
) -> _Predictor:
    check_installed(config)
    given = Adapter.read(adapter) if adapter is not None else None
    theta, spec = (given.theta, given.spec) if given else ({}, BARE)
    config = replace(config, device=ENGINES[config.engine].device(config.device, config.tables))
    model = find_model(config, task=task)
    facts = facts_of(model, config)
    config = replace(config, dtype=config.dtype or default_dtype(facts)[0], num_threads=facts.num_threads)
    max_length = choose_max_length(config.max_length, model.context)
    if model.context is not None and num_new_tokens >= model.context:
        raise InputError(
            f"--max-new-tokens {num_new_tokens} leaves no room for a prompt in a context of {model.context} tokens"
        )
    task, texts = in_words(task, texts, model.tokenizer)
    room = max_length if model.context is None else min(max_length, model.context - num_new_tokens)
    if given:
        given.check_fits(model, task, config)
    encoder = make_encoder(model, task, config, room, spec.scope == "activated", spec.virtual_tokens, demonstrations)
    examples = encode_texts(encoder, texts, "given")
    engine = open_engine(model, config, spec)
    if given:
        given.warn_of_other_weights(engine, config)
    return _Predictor(engine, theta, examples, model)
