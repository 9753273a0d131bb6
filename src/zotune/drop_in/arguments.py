"""Settings of a run from `TrainingArguments` (also TRL's `SFTConfig`) and from PEFT's configurations.

What has the same meaning is taken over. What would change the result and cannot hold here is refused. What only says
how backpropagation is computed has no effect, and is named in the log. A learning rate and an optimizer that nobody
chose, because they are the defaults of the class, are zotune's own: theirs are for backpropagation.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PromptTuningConfig
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers import TrainingArguments

from zotune.errors import InputError
from zotune.values import shown

logger = logging.getLogger("zotune")

SCHEDULES = ("constant", "linear", "cosine", "constant_with_warmup")
ADAM = {"adam_beta1": "beta1", "adam_beta2": "beta2", "adam_epsilon": "eps"}
OFF = {  # of arguments that would change what is trained
    "packing": "examples never share a row with others that they could see",
    "neftune_noise_alpha": "nothing is added to embeddings",
    "label_smoothing_factor": "the loss is that of the tokens as they are",
    "deepspeed": "a run is one process",
    "fsdp": "a run is one process",
    "push_to_hub": "a run writes files alone; push the folder that save_model has written",
    "auto_find_batch_size": "take another batch size where memory is too small",
    "full_determinism": "runs are the same to the bit anyway",
}
WITHOUT_EFFECT = (  # they say how backpropagation or a loader of batches is computed
    "gradient_checkpointing", "activation_checkpointing", "max_grad_norm", "tf32", "torch_compile", "use_liger_kernel",
    "dataloader_num_workers", "dataloader_drop_last", "padding_free", "activation_offloading", "ddp_backend",
    "train_sampling_strategy",
)  # fmt: skip
LORA_OFF = (
    "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "modules_to_save", "layers_to_transform",
    "exclude_modules", "target_parameters", "trainable_token_indices", "layer_replication", "lora_bias",
)  # fmt: skip


def settings_of(args: TrainingArguments, num_examples: int | None) -> dict[str, Any]:
    """Settings by their names here.

    Args:
        num_examples: of the training data, where a share of the steps is asked for.

    Raises:
        InputError: an argument cannot hold here; it is named, with what there is instead.
    """
    for name, why in OFF.items():
        if getattr(args, name, None):
            raise InputError(f"args.{name}: {why}; leave it out")
    if args.world_size > 1:
        raise InputError(f"args: {args.world_size} processes were started, and a run is one; start one alone")
    unused = [name for name in WITHOUT_EFFECT if _is_chosen(args, name)]
    if unused:
        logger.info("of args, these have no effect here: %s", ", ".join(unused))
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
    values: dict[str, Any] = {
        "output_dir": args.output_dir, "batch_size": batch, "seed": args.seed, "weight_decay": args.weight_decay,
        "data_seed": args.data_seed or 0, "run_name": None,
    }  # fmt: skip
    if args.max_steps > 0:
        values["num_steps"] = steps = args.max_steps
    else:
        values["num_train_epochs"] = float(args.num_train_epochs)
        steps = math.ceil((num_examples or 0) / batch * args.num_train_epochs)
    values |= _rate(args, steps) | _optimizer(args) | _looks(args, steps) | _of_sft(args)
    if args.fp16:
        values["dtype"] = "float16"
    if args.use_cpu:
        values["device"] = "cpu"
    return values


def _is_chosen(args: TrainingArguments, name: str) -> bool:
    """Whether an argument is another one than its class has by default."""
    default = next((item.default for item in fields(args) if item.name == name), None)
    return getattr(args, name, default) != default


def _rate(args: TrainingArguments, steps: int) -> dict[str, Any]:
    kind = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    if kind not in SCHEDULES:
        raise InputError(f"args.lr_scheduler_type: expected one of {', '.join(SCHEDULES)}, got {kind}")
    warmup = args.warmup_steps
    if 0 < warmup < 1:
        warmup = _share("warmup_steps", warmup, steps)
    values: dict[str, Any] = {"lr_scheduler_type": kind, "warmup_steps": int(warmup)}
    if _is_chosen(args, "learning_rate"):
        values["learning_rate"] = args.learning_rate
    return values


def _optimizer(args: TrainingArguments) -> dict[str, Any]:
    given = {ours: getattr(args, name) for name, ours in ADAM.items() if _is_chosen(args, name)}
    name = str(getattr(args.optim, "value", args.optim))
    if not _is_chosen(args, "optim"):
        return {"adam": given} if given else {}
    kind = "adamw" if name.startswith("adamw") else name
    if kind not in ("adamw", "sgd"):
        raise InputError(f"args.optim: {name} is not here; take adamw_torch or sgd, or give optimizer=... of zotune")
    return {"optimizer": kind, **({"adamw": given} if given and kind == "adamw" else {})}


def _share(name: str, share: float, steps: int) -> int:
    if not steps:
        raise InputError(f"args.{name}: {share} is a share of a number of steps that is not known; give a whole number")
    return math.ceil(share * steps)


def _strategy(value: Any) -> str:
    return str(getattr(value, "value", value))


def _looks(args: TrainingArguments, steps: int) -> dict[str, Any]:
    """When to log, to evaluate and to keep."""
    values: dict[str, Any] = {"eval_strategy": _strategy(args.eval_strategy)}
    for name in ("logging_steps", "eval_steps", "save_steps"):
        number = getattr(args, name)
        if number is not None and 0 < number < 1:
            number = _share(name, number, steps)
        if number:
            values[name] = int(number)
    if values["eval_strategy"] != "steps":
        values.pop("eval_steps", None)
    keep = _strategy(args.save_strategy)
    if keep == "steps":
        values["save_total_limit"] = args.save_total_limit
    else:
        values.pop("save_steps", None)
        if keep == "epoch":
            raise InputError("args.save_strategy: give 'steps' and save_steps; every step can be had from the journal")
    if args.load_best_model_at_end and args.metric_for_best_model not in (None, "loss", "eval_loss"):
        raise InputError(
            f"args.metric_for_best_model: the best adapter has the lowest loss, not {args.metric_for_best_model}"
        )
    return values


def _of_sft(args: TrainingArguments) -> dict[str, Any]:
    """What TRL's SFTConfig has beside."""
    values: dict[str, Any] = {}
    if getattr(args, "completion_only_loss", None) is False:
        raise InputError("args.completion_only_loss: completions are learnt alone; leave it out")
    for name in ("max_length", "trust_remote_code"):
        if value := getattr(args, name, None):
            values[name] = value
    path = getattr(args, "chat_template_path", None)
    if path:
        values["chat_template"] = str(Path(path) / "chat_template.jinja" if Path(path).is_dir() else path)
    loss = getattr(args, "loss_type", "nll")
    if loss != "nll":
        raise InputError(f"args.loss_type: {loss} is not here; leave it out, or give objective=... of zotune")
    return values


def fields_of(args: TrainingArguments, columns: Sequence[str]) -> dict[str, Any]:
    """What the data calls the text, where `SFTConfig` says so."""
    name = getattr(args, "dataset_text_field", "text")
    return {"fields": [f"text={name}"]} if name != "text" and name in columns else {}


def adapter_settings(config: PeftConfig | None, tokenizer: Tokenizer) -> dict[str, Any]:
    """What is trained: by a configuration of PEFT, or all parameters, as transformers' Trainer does without one.

    Raises:
        InputError: a configuration that cannot hold here.
    """
    if config is None:
        return {"tuning": "full"}
    if isinstance(config, PromptTuningConfig):
        return {"tuning": "prompt_tuning", "prompt_tuning": {"num_virtual_tokens": config.num_virtual_tokens}}
    if not isinstance(config, LoraConfig):
        raise InputError(f"peft_config: expected LoraConfig or PromptTuningConfig, got {type(config).__name__}")
    for name in LORA_OFF:
        if value := getattr(config, name, None):
            raise InputError(f"peft_config.{name}: {shown(value)} is not here; leave it out")
    if config.bias != "none":
        raise InputError(f"peft_config.bias: biases stay as they are, got {config.bias!r}; leave it out")
    if config.init_lora_weights not in (True, "eva"):
        raise InputError(f"peft_config.init_lora_weights: expected True or 'eva', got {config.init_lora_weights!r}")
    if config.lora_dropout:
        logger.info("peft_config.lora_dropout %g has no effect: all that a step compares sees the same model",
                    config.lora_dropout)  # fmt: skip
    values: dict[str, Any] = {"tuning": "lora", "lora_rank": config.r, "lora_alpha": float(config.lora_alpha)}
    targets: Any = config.target_modules
    if isinstance(targets, str):
        if targets != "all-linear":
            raise InputError(f"peft_config.target_modules: give names in a list, or 'all-linear', got {targets!r}")
        targets = [targets]
    if targets:
        values["target_modules"] = sorted(targets)
    if config.init_lora_weights == "eva":
        values["init_lora_weights"] = "eva"
    invocation = getattr(config, "alora_invocation_tokens", None)
    if invocation:
        values |= {"scope": "activated", "invocation": str(tokenizer.decode(list(invocation)))}
    else:
        values["scope"] = "everywhere"
    return values


def merged(given: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the arguments, and over them those that are given by zotune's own names."""
    kept = dict(given)
    if "num_steps" in own:
        kept.pop("num_train_epochs", None)
    if "num_train_epochs" in own:
        kept.pop("num_steps", None)
    if own.get("tuning") in ("full", "prompt_tuning"):
        for name in ("scope", "lora_rank", "lora_alpha", "target_modules", "init_lora_weights"):
            kept.pop(name, None)
    return {name: value for name, value in {**kept, **own}.items() if value is not None}
