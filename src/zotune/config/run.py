"""What holds in a run: its settings with everything chosen that was left open, each choice with its reason.

`resolve` is the only place where a setting is chosen. It needs the task, which the data decide, and facts about the
model that are known before its weights are read.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zotune.config.checks import WRITING
from zotune.config.defaults import (
    SMALL_MODEL,
    choose_method,
    default_learning_rate,
    make_estimator,
    make_noise,
    optimizer_arguments,
)
from zotune.config.fields import ACCURACY, KNOWN_MODELS, Dtype
from zotune.config.settings import Config
from zotune.config.tables import METHOD_TABLES
from zotune.data.task_choice import check_has_labels
from zotune.data.tasks import Task
from zotune.data.texts import WEIGHT
from zotune.errors import InputError
from zotune.rewards.functions import full_name
from zotune.run.own_metrics import ComputeMetrics, OwnMetrics, check_metrics
from zotune.zo.estimators import ESTIMATORS, Estimator
from zotune.zo.noise import Noise
from zotune.zo.objectives import OBJECTIVES, Objective, RewardObjective, ScoredObjective
from zotune.zo.protocol import Sampling
from zotune.zo.schedules import Schedule, make_schedule

MAX_DEFAULT_LENGTH = 2048
DEFAULT_NEW_TOKENS = 64
WORTHWHILE_SPEEDUP = 1.5  # of bfloat16 on a CPU
# What decides the numbers of a run, beside the examples, the base weights and what the journal has of itself. Where a
# run is computed is not among it, nor how long: a run may go on with another engine, device or number of steps.
DECISIVE = (
    "scope", "batch_size", "epsilon", "learning_rate", "lr_scheduler_type", "warmup_steps", "estimator", "directions",
    "tuning", "objective", "dtype", "quantization",
)  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What is known of the model and the machine before weights are read. None: not known, or not set.

    `quantization` is how the model's weights lie there already; `dtype` is that of a model that is loaded.
    `half_speedup` is how many times as fast bfloat16 is there as float32. `writers` are the modules that write into the
    residual stream, of a model and an engine that may have a lens; `activated_writers` those of them that PEFT can run
    in an activated adapter, or, where these are not all, what stands in for them. `usual_targets` are the modules that
    other methods adapt. `masked` is whether it is a masked language model.
    """

    num_parameters: int
    context: int | None
    quantization: str | None
    device: str
    dtype: str | None
    num_threads: int | None
    half_speedup: float | None = None
    writers: tuple[str, ...] | None = None
    activated_writers: tuple[str, ...] | None = None
    usual_targets: tuple[str, ...] = ("q_proj", "v_proj")
    masked: bool = False


@dataclass(frozen=True)
class Choice:
    """A setting that was left open."""

    name: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Run:
    """Everything that a run was asked for or that was chosen; `config` has it in the words of the settings."""

    config: Config
    choices: tuple[Choice, ...]
    task: Task
    estimator: Estimator
    optimizer: Mapping[str, Any]  # {"name": a key of OPTIMIZERS, and its arguments}
    noise: Noise
    objective: Objective
    schedule: Schedule

    @property
    def decisive(self) -> dict[str, Any]:
        """The settings that a run which goes on must share with the one that began."""
        values = {name: getattr(self.config, name) for name in DECISIVE}
        if table := self.config.tables.get(self.config.estimator or ""):
            values["estimator_settings"] = dict(table)
        if self.config.head != "lm":
            values["head"] = self.config.head
            if self.config.tuning == "full":  # by which a replay makes the head again
                values["num_labels"] = len(self.task.labels)
        if self.config.batches_per_step > 1:
            values["batches_per_step"] = self.config.batches_per_step
        if self.config.judges_texts:
            values["reward"] = [name.rpartition("/")[2] for name in self.config.reward]
            values |= {name: getattr(self.config, name) for name in WRITING}
            values |= {name: list(getattr(self.config, name)) for name in ("reward_weights", "stop_strings")}
        return values


def resolve(config: Config, task: Task, facts: Facts) -> Run:
    """Choose what `config` leaves open.

    Raises:
        InputError: what was asked for does not go with the task or the model.
    """
    choices: list[Choice] = []

    def choose(name: str, value: Any, reason: str) -> Any:
        asked = getattr(config, name)
        if asked is not None or value is None:
            return asked
        choices.append(Choice(name, value, reason))
        return value

    adapts = config.tuning not in ("full", "prompt_tuning")
    acts_late = bool(task.invocation) and adapts and not facts.masked
    reason = "the task has an invocation" if task.invocation else "the task has no invocation"
    if facts.masked:
        reason = "a masked model's tokens see the whole text"
    scope = choose(
        "scope", "activated" if acts_late else "everywhere", reason if adapts else f"--tuning {config.tuning}"
    )
    objective = objective_name(config, task)
    has_gradient = OBJECTIVES[objective].has_gradient
    usual = choose_method(config, scope, lens=facts.writers is not None and has_gradient)
    study = "our study of causal models" if facts.masked else "our study"
    if config.estimator == "backprop":
        why = "what backpropagation of an adapter usually takes"
    elif config.tuning == "full":
        why = "MeZO's, at the memory of inference"
    elif config.judges_texts:
        why = "what trains on rewards here, where there is no gradient"
    elif usual["estimator"] == "lens":
        why = f"the gradient at the memory of inference: the best in {study}"
    else:
        why = f"the best in {study} for scope {scope}"
    method = {name: choose(name, value, why) for name, value in usual.items()}
    if method["tuning"] == "full" and facts.quantization:
        raise InputError(
            f"--tuning full: {config.model} is quantised ({facts.quantization}), and such weights stay as they are"
        )
    size = f"{method['optimizer']} on a model of {facts.num_parameters / 1e6:.3g} million parameters"
    rate = default_learning_rate(
        facts.num_parameters, method["estimator"], method["optimizer"], method["tuning"], config.head
    )
    targets, why_these = facts.usual_targets, "those of LoRA's paper, or PEFT's for this kind of model"
    if method["estimator"] == "lens" and facts.writers:
        own = facts.activated_writers if scope == "activated" else None
        targets = own or facts.writers
        why_these = "they write into the residual stream"
        if left_out := sorted(set(facts.writers) - set(targets)):
            why_these = f"attention's: PEFT could not run {', '.join(left_out)} in an activated adapter"
    noise, seeded = make_noise(config), ESTIMATORS[method["estimator"]].seeded
    chosen = {
        "scope": scope,
        **method,
        "target_modules": choose("target_modules", targets if adapts and not config.adapter else None, why_these),
        "learning_rate": choose("learning_rate", rate, size),
        "noise": choose("noise", noise.kind if seeded else None, f"the usual one of {method['estimator']}"),
        "max_length": choose_max_length(config.max_length, facts.context),
        "objective": choose("objective", objective, "--reward" if config.reward else f"that of task {task.name}"),
        "reward": tuple(map(full_name, config.reward)),
        **_writing(config),
        "device": facts.device,
        "dtype": facts.dtype or choose("dtype", *default_dtype(facts)),
        "num_threads": facts.num_threads,
        "model": config.model if config.model in KNOWN_MODELS else absolute(config.model),
        "task": None if config.task is None and (config.labels or config.choice_fields) else task.name,
        "adapter": absolute(config.adapter),
        "train_data": absolute(config.train_data),
        "stream_data": absolute(config.stream_data),
        "eval_data": absolute(config.eval_data),
        "chat_template": absolute(config.chat_template),
    }
    names = [method["estimator"], method["optimizer"], chosen["noise"], method["tuning"]]
    full = replace(config, **chosen, tables={**config.tables, **_tables_in_use(config, names)})
    return Run(
        full, tuple(choices), task, make_estimator(full), optimizer_arguments(full), noise, make_objective(full, task),
        make_schedule(full.lr_scheduler_type, chosen["learning_rate"], full.num_steps, full.warmup_steps),
    )  # fmt: skip


def paced(run: Run, num_examples: int) -> Run:
    """The run, where epochs say how long it is or when it evaluates: in steps, now that its examples are known.

    Raises:
        InputError: it is shorter than its warm-up.
    """
    config, choices = run.config, list(run.choices)
    per_epoch = num_examples / (config.batch_size * config.batches_per_step)
    changes: dict[str, Any] = {}
    if config.num_train_epochs is not None:
        changes |= {"num_steps": math.ceil(config.num_train_epochs * per_epoch), "num_train_epochs": None}
        choices.append(Choice("num_steps", changes["num_steps"], f"--num-train-epochs {config.num_train_epochs:g}"))
    if config.eval_strategy == "epoch":
        changes |= {"eval_steps": math.ceil(per_epoch), "eval_strategy": "steps"}
        choices.append(Choice("eval_steps", changes["eval_steps"], "--eval-strategy epoch"))
    if not changes:
        return run
    full = replace(config, **changes)
    rate = full.learning_rate
    assert rate is not None
    schedule = make_schedule(full.lr_scheduler_type, rate, full.num_steps, full.warmup_steps)
    return replace(run, config=full, choices=tuple(choices), schedule=schedule)


def objective_name(config: Config, task: Task) -> str:
    """A key of OBJECTIVES."""
    return "accuracy" if config.reward == ACCURACY else config.objective or task.objective


def _writing(config: Config) -> dict[str, Any]:
    """How texts are written that rewards judge."""
    if not config.judges_texts:
        return {}
    several = (config.num_generations or 1) > 1
    usual = {
        "num_generations": 1,
        "max_new_tokens": DEFAULT_NEW_TOKENS,
        "temperature": 1.0 if several else 0.0,
        "top_p": 1.0,
    }
    return {name: value if getattr(config, name) is None else getattr(config, name) for name, value in usual.items()}


def default_dtype(facts: Facts) -> tuple[Dtype, str]:
    """The precision of a model's weights, and why. Small models are quick in float32, too."""
    if facts.device.startswith("cuda"):
        return "bfloat16", f"the device is {facts.device}"
    if facts.num_parameters >= SMALL_MODEL and (facts.half_speedup or 0.0) >= WORTHWHILE_SPEEDUP:
        return "bfloat16", f"its products are {facts.half_speedup:.1f} times as fast here as those of float32"
    if facts.half_speedup is not None:
        return "float32", f"products in bfloat16 are {facts.half_speedup:.1f} times as fast here"
    return "float32", f"the device is {facts.device}"


def choose_max_length(asked: int | None, context: int | None) -> int:
    """`asked`, which must fit the model's context, or the context itself up to MAX_DEFAULT_LENGTH."""
    if asked is not None and context is not None and asked > context:
        raise InputError(f"--max-length {asked} is more than the model's context of {context} tokens")
    return asked or min(context or MAX_DEFAULT_LENGTH, MAX_DEFAULT_LENGTH)


def absolute(name: str | None) -> str | None:
    """Local paths made independent of the working directory, so that a run can be resumed from anywhere."""
    if name and not Path(name).expanduser().exists():
        folder, colon, configuration = name.rpartition(":")  # a configuration of a data set
        return f"{absolute(folder)}{colon}{configuration}" if folder else name
    return str(Path(name).expanduser().resolve()) if name else name


def _tables_in_use(config: Config, names: list[str]) -> dict[str, dict[str, Any]]:
    """The tables of the methods that the run has, with their defaults written out."""
    return {
        name: {key: setting.default for key, setting in METHOD_TABLES[name].items()} | dict(config.tables.get(name, {}))
        for name in names
        if name in METHOD_TABLES and not (name == "prompt_tuning" and config.adapter)  # which has its own
    }


def make_objective(config: Config, task: Task) -> Objective:
    """What is minimised; where that is a reward, who judges is still to be said.

    Raises:
        InputError: it does not go with the task or the estimator.
    """
    name, weight = objective_name(config, task), config.field_names.get(WEIGHT)
    if weight and not isinstance(OBJECTIVES[name], ScoredObjective):
        raise InputError(f"--fields weight={weight}: --objective {name} has no loss of a record that could be weighted")
    if name == "reward":
        return _reward_objective(config, task)
    objective = OBJECTIVES[name]
    if objective.needs_same_labels:
        check_has_labels(f"--objective {name}", task)
    if objective.takes_labels not in (None, task.classifies):
        needs = (
            "label words (--labels) or options (--choice-fields)"
            if objective.takes_labels
            else "a completion, not labels"
        )
        raise InputError(f"--objective {name} needs {needs}; task {task.name} uses {task.objective}")
    if config.estimator in ("lens", "backprop") and not objective.has_gradient:
        raise InputError(f"--estimator {config.estimator}: --objective {name} has no gradient; take another estimator")
    return replace(objective, weight_field=weight) if isinstance(objective, ScoredObjective) else objective


def make_metrics(config: Config, task: Task, compute: ComputeMetrics | None = None) -> OwnMetrics:
    """What evaluations measure beside the loss; the model that writes is still to be said.

    Raises:
        InputError: the task has not the metrics that were asked for.
    """
    of_labels = task.classifies
    check_metrics(config.metrics, of_labels, task.name)
    if not (config.metrics or compute):
        return OwnMetrics()
    if not of_labels and (config.judges_texts or not task.template):
        raise InputError(
            f"--metrics: task {task.name} has no prompts with an answer that a text could be compared with"
        )
    if of_labels and (config.max_new_tokens or config.stop_strings):
        raise InputError(f"--max-new-tokens and --stop-strings have no effect on task {task.name}, which has labels")
    sampling = Sampling(config.max_new_tokens or DEFAULT_NEW_TOKENS)
    return OwnMetrics(config.metrics, compute, of_labels, task.answers_field, sampling, config.stop_strings)


def _reward_objective(config: Config, task: Task) -> RewardObjective:
    if not config.judges_texts:
        raise InputError(
            f"--reward: task {task.name} has prompts and nothing to learn; name a reward of what is written"
        )
    writing = _writing(config)
    sampling = Sampling(writing["max_new_tokens"], writing["temperature"], top_p=writing["top_p"])
    return RewardObjective(sampling, writing["num_generations"], config.stop_strings)
