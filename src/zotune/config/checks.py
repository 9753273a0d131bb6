"""What a configuration may not say, each in one sentence that names the option: before anything is loaded."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from zotune.config.defaults import choose_method, make_noise
from zotune.config.fields import Fields
from zotune.config.ranges import check_ranges
from zotune.config.tables import check_tables
from zotune.engine import ENGINES
from zotune.errors import InputError
from zotune.run.trackers import check_names
from zotune.zo.estimators import ESTIMATORS
from zotune.zo.objectives import OBJECTIVES
from zotune.zo.optimizers import OPTIMIZERS
from zotune.zo.setting import flag_of

ADAPTER_OWN = ("init_lora_weights", "lora_rank", "lora_alpha", "target_modules")
WRITING = ("num_generations", "max_new_tokens", "temperature", "top_p", "stop_strings")
_WITH_REWARD = ("reward_weights", "reward_timeout_s", "reward_processes", *WRITING)
_LORA_ONLY = (*ADAPTER_OWN, "kv_cache_gb")


def check(config: Fields) -> None:
    """Refuse values out of range, and settings that mean nothing beside others.

    Raises:
        InputError: with the option as the command has it.
    """
    check_ranges(config)
    check_names(config.report_to)
    _check_reward(config)
    if config.num_per_class is not None and config.max_train_samples is not None:
        raise InputError(
            "--num-per-class does not go with --max-train-samples: both say how many to train on; take one"
        )
    _check_pace(config)
    method = choose_method(config, config.scope)
    check_tables(config, {**method, "noise": config.noise or "gaussian"})
    _check_method(config, method)
    _check_tuning(config, method["tuning"])
    if config.quantization and config.estimator == "jvp":
        raise InputError("--quantization does not go with --estimator jvp: bitsandbytes has no derivatives there")
    ENGINES[config.engine].check(config)
    if config.kv_cache_gb is not None and config.scope == "everywhere":
        raise InputError("--kv-cache-gb has no effect with --scope everywhere, which keeps no prompts; leave it out")
    for pair in config.fields:
        role, equals, name = pair.partition("=")
        if not (role and equals and name):
            raise InputError(f"--fields takes pairs such as text=body, got {pair!r}")


def _check_pace(config: Fields) -> None:
    """Refuse what says twice how long a run is, and what nothing would be done by."""
    if config.num_train_epochs is not None and config.num_steps != config.__dataclass_fields__["num_steps"].default:
        raise InputError("--num-train-epochs does not go with --num-steps: both say how long to train; take one")
    if config.save_total_limit is not None and config.save_steps is None:
        raise InputError("--save-total-limit has no effect without --save-steps")
    if config.eval_strategy == "no" and config.early_stopping_patience is not None:
        raise InputError("--early-stopping-patience has no effect with --eval-strategy no; leave it out")
    if config.run_name is not None and ("/" in config.run_name or config.run_name in ("", ".", "..")):
        raise InputError(f"--run-name: {config.run_name!r} is no name of a folder")


def _check_method(config: Fields, method: Mapping[str, Any]) -> None:
    """Refuse settings of other estimators, optimizers and kinds of noise, and combinations that mean nothing."""
    tables: dict[str, Mapping[str, Any]] = {"estimator": ESTIMATORS, "optimizer": OPTIMIZERS}
    for option, table in tables.items():
        for item in fields(config):
            takers = [name for name, made in table.items() if item.name in made.__dataclass_fields__]
            if takers and method[option] not in takers and getattr(config, item.name) != item.default:
                raise InputError(
                    f"--{item.name.replace('_', '-')} has no effect with --{option} {method[option]}; "
                    f"it is for {', '.join(takers)}"
                )
    noise = make_noise(config)
    if config.noise_steps is not None and not noise.is_periodic:
        raise InputError("--noise-steps has no effect without --noise low_rank or --noise-blocks")
    if noise.kind == "low_rank" and method["tuning"] == "vera":
        raise InputError("--noise low_rank has no effect with --tuning vera, which trains vectors")
    if method["estimator"] == "lens" and method["tuning"] not in ("lora", "lora_fa"):
        raise InputError(
            f"--estimator lens does not go with --tuning {method['tuning']}: it gives the gradients of LoRA's A and B; "
            "take lora, or lora_fa, with A frozen"
        )
    if not ESTIMATORS[method["estimator"]].seeded:
        _check_without_seeds(config, method)
    if method["estimator"] == "es":
        one_sided = config.tables.get("es", {}).get("sides") == "one"
        least = (2 if one_sided else 1) * config.batches_per_step
        if method["directions"] < least:
            raise InputError(
                f"--directions must be {least} or more with --batches-per-step {config.batches_per_step}, got "
                f"{method['directions']}: each batch has its share of them, of which losses are compared"
            )
    if method["estimator"] == "fzoo" and method["directions"] < 2:
        raise InputError("--estimator fzoo needs --directions 2 or more: it divides by the spread of their losses")
    if (config.estimator == "hizoo") != (config.optimizer == "hizoo"):
        raise InputError("--estimator hizoo and --optimizer hizoo go together: one measures what the other uses")
    if config.estimator == "hizoo" and noise.kind != "gaussian":
        raise InputError(f"--estimator hizoo needs --noise gaussian: {noise.kind} directions do not show the diagonal")
    if config.estimator == "svrg" and (noise.is_periodic or noise.sparsity):
        raise InputError(
            "--estimator svrg compares slopes at different steps along the same directions, which "
            f"{'--sparsity' if noise.sparsity else 'noise of periods'} changes; leave that out"
        )


def _check_reward(config: Fields) -> None:
    """Refuse what means nothing with rewards, or nothing without."""
    if config.judges_texts:
        if config.metrics:
            raise InputError(
                f"--metrics {config.metrics[0]} does not go with --reward, which measures what the model writes; name "
                "one more reward, with a weight of 0"
            )
        if "accuracy" in config.reward:
            raise InputError(
                "--reward accuracy judges the scores of label words, the others what the model writes; take one of them"
            )
        if config.num_demonstrations:
            raise InputError("--num-demonstrations does not go with --reward, whose prompts have no answers to show")
        if config.num_per_class is not None:
            raise InputError("--num-per-class does not go with --reward, whose prompts have no labels")
        if (config.num_generations or 1) > 1 and config.temperature == 0:
            raise InputError("--num-generations above 1 needs --temperature above 0: else all texts are the same")
        if (config.top_p or 1.0) < 1.0 and not (config.temperature or (config.num_generations or 1) > 1):
            raise InputError("--top-p has no effect without --temperature, which draws tokens")
    else:
        for name in _WITH_REWARD:
            if name in ("max_new_tokens", "stop_strings") and config.metrics:
                continue
            if getattr(config, name) != config.__dataclass_fields__[name].default:
                raise InputError(
                    f"--{name.replace('_', '-')} has no effect without --reward on what the model writes; leave it out"
                )
    if config.reward:
        objective = "reward" if config.judges_texts else "accuracy"
        if config.objective not in (None, objective):
            raise InputError(
                f"--objective {config.objective} does not go with --reward {config.reward[0]}, which is the objective"
            )
    wants_gradient = config.estimator in ("lens", "backprop", "jvp")
    has_none = config.objective is not None and not OBJECTIVES[config.objective].has_gradient
    if wants_gradient and (config.reward or has_none):
        what = f"--reward {config.reward[0]}" if config.reward else f"--objective {config.objective}"
        raise InputError(f"--estimator {config.estimator}: {what} has no gradient; take es, or another estimator")


def _check_without_seeds(config: Fields, method: Mapping[str, Any]) -> None:
    """An estimator that draws no directions has nothing to draw them from."""
    for name in ("directions", "noise", "noise_steps", "noise_blocks", "sparsity", "clip"):
        if getattr(config, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')} has no effect with --estimator {method['estimator']}, which draws no "
                "directions; leave it out"
            )
    if method["tuning"] == "full":
        raise InputError(
            f"--estimator {method['estimator']} does not go with --tuning full: a checkpoint would be a whole model; "
            "train an adapter, or take spsa"
        )


def _check_adapter(config: Fields, tuning: str) -> None:
    """Refuse what an adapter that the run goes on from has of its own, and kinds of training that it is not for."""
    if tuning in ("full", "vera"):
        raise InputError(f"--adapter does not go with --tuning {tuning}; take lora, lora_fa or prompt_tuning")
    for name in ADAPTER_OWN:
        if getattr(config, name) != config.__dataclass_fields__[name].default:
            raise InputError(
                f"--{name.replace('_', '-')} has no effect with --adapter, which has its own; leave it out"
            )
    for name in config.tables.get("prompt_tuning", {}):
        flag = flag_of("prompt_tuning", name)
        raise InputError(f"{flag} has no effect with --adapter, which has its own; leave it out")


def _check_tuning(config: Fields, tuning: str) -> None:
    option = f"--tuning {tuning}"
    if config.adapter is not None:
        _check_adapter(config, tuning)
    if tuning == "vera" and config.init_lora_weights:
        raise InputError(f"--init-lora-weights has no effect with {option}, whose A and B all modules share")
    if tuning not in ("full", "prompt_tuning"):
        return
    for name in _LORA_ONLY:
        if getattr(config, name) != config.__dataclass_fields__[name].default:
            raise InputError(f"--{name.replace('_', '-')} has no effect with {option}; leave it out")
    if tuning == "prompt_tuning":
        if config.scope == "activated":
            raise InputError(f"--scope activated has no meaning with {option}, whose vectors stand before the prompt")
        if config.estimator == "jvp":
            raise InputError(
                f"--estimator jvp does not go with {option}: only LoRA's matrices have derivatives; use spsa"
            )
        return
    if config.scope == "activated":
        raise InputError(f"--scope activated has no meaning with {option}: prompts change with the parameters")
    if config.quantization:
        raise InputError(f"--quantization does not go with {option}: its weights stay as they are; train an adapter")
    if config.optimizer not in (None, "sgd") or config.tables.get("sgd", {}).get("momentum") or config.clip:
        raise InputError(
            f"{option} needs --optimizer sgd without --sgd.momentum and --clip: the state of the others would take "
            "the memory of a model"
        )
    if config.estimator in ("svrg", "jvp"):
        why = "it holds a second theta" if config.estimator == "svrg" else "only LoRA's matrices have derivatives"
        raise InputError(f"--estimator {config.estimator} does not go with {option}: {why}; use spsa")
