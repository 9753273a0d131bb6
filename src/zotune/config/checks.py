"""What a configuration may not say, each in one sentence that names the option: before anything is loaded."""

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from zotune.config.defaults import choose_method, make_noise
from zotune.errors import InputError
from zotune.zo.estimators import ESTIMATORS
from zotune.zo.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from zotune.config.settings import Config


def check(config: "Config") -> None:
    """Refuse values out of range, and settings that mean nothing beside others.

    Raises:
        InputError: with the option as the command has it.
    """

    def refuse(name: str, allowed: str) -> None:
        raise InputError(f"--{name.replace('_', '-')} must be {allowed}, got {getattr(config, name)}")

    for name in ("num_steps", "batch_size", "lora_rank", "eval_steps"):
        if getattr(config, name) < 1:
            refuse(name, "1 or more")
    for name in (
        "early_stopping_patience", "max_train_samples", "max_eval_samples", "num_threads", "noise_rank", "noise_steps",
        "noise_blocks", "svrg_steps", "svrg_batches", "epsilon_steps", "num_virtual_tokens", "directions",
    ):  # fmt: skip
        if getattr(config, name) is not None and getattr(config, name) < 1:
            refuse(name, "1 or more")
    for name in ("epsilon", "learning_rate", "lora_alpha", "clip", "adam_epsilon"):
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            refuse(name, "a finite number above 0")
    for name in ("weight_decay", "warmup_steps", "seed", "data_seed"):
        if not (math.isfinite(getattr(config, name)) and getattr(config, name) >= 0):
            refuse(name, "0 or more")
    for name in ("momentum", "adam_beta1", "adam_beta2", "sparsity"):
        if getattr(config, name) is not None and not 0 <= getattr(config, name) < 1:
            refuse(name, "0 or more and below 1")
    if config.hizoo_smoothing is not None and not 0 < config.hizoo_smoothing < 1:
        refuse("hizoo_smoothing", "above 0 and below 1")
    _check_method(config)
    _check_tuning(config)
    if config.peft_type == "vera" and config.init_lora_weights:
        raise InputError("--init-lora-weights has no effect with --peft-type vera, whose A and B all modules share")
    _check_prompt_tuning(config)
    _check_quantization(config)
    if config.max_length is not None and config.max_length < 2:
        refuse("max_length", "2 or more")
    if not re.fullmatch(r"auto|cpu|(cuda|mps)(:\d+)?", config.device):
        refuse("device", "auto, cpu, cuda or cuda:N")
    if config.lr_scheduler_type == "constant" and config.warmup_steps:
        raise InputError("--warmup-steps has no effect with --lr-scheduler-type constant; use constant_with_warmup")
    if config.warmup_steps > config.num_steps:
        refuse("warmup_steps", f"at most --num-steps ({config.num_steps})")
    if not config.target_modules:
        raise InputError("--target-modules names no module")
    if config.kv_cache_gb is not None and not (math.isfinite(config.kv_cache_gb) and config.kv_cache_gb >= 0):
        refuse("kv_cache_gb", "0 or more")
    if config.sglang and config.engine != "sglang":
        raise InputError(f"--sglang.* options have no effect with --engine {config.engine}; add --engine sglang")
    if config.engine == "sglang":
        if config.tuning == "full":
            raise InputError(
                "--tuning full has no effect with --engine sglang, which trains adapters; use --engine torch"
            )
        if config.kv_cache_gb is not None:
            raise InputError("--kv-cache-gb has no effect with --engine sglang; use --sglang.max-total-tokens")
        if config.num_threads is not None:
            raise InputError(
                "--num-threads has no effect with --engine sglang; set OMP_NUM_THREADS, which SGLang reads"
            )
        if config.device.startswith("mps"):
            raise InputError(f"--device {config.device} does not go with --engine sglang; use cuda or cpu")
    for name, value in (("engine", "plain"), ("scope", "everywhere")):
        if config.kv_cache_gb is not None and getattr(config, name) == value:
            raise InputError(f"--kv-cache-gb has no effect with --{name} {value}, which keeps no prompts; leave it out")
    for pair in config.fields:
        role, equals, name = pair.partition("=")
        if not (role and equals and name):
            raise InputError(f"--fields takes pairs such as text=body, got {pair!r}")


def _check_method(config: "Config") -> None:
    """Refuse settings of other estimators, optimizers and kinds of noise, and combinations that mean nothing."""
    tables: dict[str, Mapping[str, Any]] = {"estimator": ESTIMATORS, "optimizer": OPTIMIZERS}
    method = choose_method(config, config.scope)
    for option, table in tables.items():
        chosen = method[option]
        for setting in fields(config):
            takers = [name for name, made in table.items() if setting.name in made.__dataclass_fields__]
            if takers and chosen not in takers and getattr(config, setting.name) != setting.default:
                raise InputError(
                    f"--{setting.name.replace('_', '-')} has no effect with --{option} {chosen}; "
                    f"it is for {', '.join(takers)}"
                )
    noise = make_noise(config)
    if config.noise_rank is not None and noise.kind != "low_rank":
        raise InputError(f"--noise-rank has no effect with {noise.kind} noise; it is for --noise low_rank")
    if config.noise_steps is not None and not noise.is_periodic:
        raise InputError("--noise-steps has no effect without --noise low_rank or --noise-blocks")
    if noise.kind == "low_rank" and config.peft_type == "vera":
        raise InputError("--noise low_rank has no effect with --peft-type vera, which trains vectors")
    if config.estimator == "fzoo" and method["directions"] < 2:
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


def _check_tuning(config: "Config") -> None:
    if config.tuning == "lora":
        return
    for name in ("peft_type", "init_lora_weights", "lora_rank", "lora_alpha", "target_modules", "kv_cache_gb"):
        if getattr(config, name) != config.__dataclass_fields__[name].default:
            raise InputError(f"--{name.replace('_', '-')} has no effect with --tuning full; leave it out")
    if config.scope == "activated":
        raise InputError("--scope activated has no meaning with --tuning full: prompts change with the parameters")
    if config.optimizer not in (None, "sgd") or config.momentum or config.clip:
        raise InputError(
            "--tuning full needs --optimizer sgd without --momentum and --clip: the state of the others would take the "
            "memory of a model"
        )
    if config.estimator in ("svrg", "jvp"):
        raise InputError(f"--estimator {config.estimator} needs --tuning lora: it holds a second theta")


def _check_prompt_tuning(config: "Config") -> None:
    if config.peft_type != "prompt_tuning":
        if config.num_virtual_tokens is not None:
            raise InputError("--num-virtual-tokens has no effect without --peft-type prompt_tuning")
        return
    option = "--peft-type prompt_tuning"
    for name in ("init_lora_weights", "lora_rank", "lora_alpha", "target_modules", "kv_cache_gb"):
        if getattr(config, name) != config.__dataclass_fields__[name].default:
            raise InputError(f"--{name.replace('_', '-')} has no effect with {option}; leave it out")
    if config.scope == "activated":
        raise InputError(f"--scope activated has no meaning with {option}, whose vectors stand before the prompt")
    if config.engine == "sglang":
        raise InputError(f"--engine sglang does not go with {option}; use --engine torch or plain")
    if config.estimator == "jvp":
        raise InputError(f"--estimator jvp does not go with {option}: only LoRA's matrices have derivatives; use spsa")


def _check_quantization(config: "Config") -> None:
    if config.load_in_4bit and config.load_in_8bit:
        raise InputError("--load-in-4bit and --load-in-8bit exclude each other; choose one")
    if (bits := config.quantization_bits) is None:
        return
    option = f"--load-in-{bits}bit"
    if config.tuning == "full":
        raise InputError(f"{option} does not go with --tuning full: its weights stay as they are; train an adapter")
    if config.engine == "sglang":
        raise InputError(f"{option} has no effect with --engine sglang; use --sglang.quantization")
    if config.estimator == "jvp":
        raise InputError(f"{option} does not go with --estimator jvp: bitsandbytes has no derivatives in forward mode")
