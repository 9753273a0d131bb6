"""Names that people know from transformers' Trainer, TRL, Axolotl and LLaMA-Factory.

`SAME` are other names of settings: a command line, a file or Python may use them. `NO_SETTING` are names that have no
meaning here, with what there is instead.
"""

from collections.abc import Mapping
from typing import Any

from zotune.errors import InputError
from zotune.values import shown

SAME: dict[str, str] = {
    "model_name_or_path": "model",
    "base_model": "model",
    "dataset_name": "train_data",
    "train_file": "train_data",
    "validation_file": "eval_data",
    "chat_template_path": "chat_template",
    "max_steps": "num_steps",
    "num_epochs": "num_train_epochs",
    "per_device_train_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "micro_batch_size": "batch_size",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "evaluation_strategy": "eval_strategy",
    "max_seq_length": "max_length",
    "cutoff_len": "max_length",
    "sequence_len": "max_length",
    "max_completion_length": "max_new_tokens",
    "reward_funcs": "reward",
    "lora_r": "lora_rank",
    "lora_target_modules": "target_modules",
    "lora_target": "target_modules",
    "overwrite_output_dir": "overwrite",
    "torch_dtype": "dtype",
}
"""Name elsewhere -> setting."""

_NO_BACKWARD = "nothing is kept for a backward pass here; leave it out"
_STEPS = "give --batch-size: memory does not grow with it as in backpropagation"
NO_SETTING: dict[str, str] = {
    "gradient_accumulation_steps": _STEPS,
    "per_device_eval_batch_size": "evaluations choose their own; leave it out",
    "gradient_checkpointing": _NO_BACKWARD,
    "max_grad_norm": "slopes are cut by --clip",
    "optim": "take --optimizer, such as --optimizer adam",
    "bf16": "give --dtype bfloat16",
    "fp16": "give --dtype float16",
    "tf32": "give --dtype bfloat16",
    "use_cpu": "give --device cpu",
    "warmup_ratio": "give --warmup-steps",
    "use_peft": "LoRA is what is trained; all parameters are by --tuning full",
    "lora_dropout": "probes of one step must see the same model, so nothing is dropped; leave it out",
    "packing": "examples never share a row with others that they could see; leave it out",
    "assistant_only_loss": "chats are learnt so, always; leave it out",
    "completion_only_loss": "completions are learnt so, always; leave it out",
    "dataset_text_field": "give --fields text=NAME",
    "dataset_config": "give it behind a colon: --train-data ID:NAME",
    "save_strategy": "give --save-steps; every step can be had again from the journal (zotune replay)",
    "load_best_model_at_end": "the best evaluation's adapter always lies in best/ of the run folder; leave it out",
    "metric_for_best_model": "the best adapter has the lowest evaluation loss; leave it out",
    "resume_from_checkpoint": "go on with a run by zotune resume RUN",
    "logging_dir": "logs lie in the run folder (--output-dir)",
    "deepspeed": _NO_BACKWARD,
    "fsdp": _NO_BACKWARD,
    "dataloader_num_workers": "examples are read once, before training; leave it out",
    "remove_unused_columns": "columns that no text is made of are named in the log; leave it out",
}
"""Name elsewhere -> what there is instead."""


def in_our_names(values: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under our names.

    Args:
        names: of settings that there are, for which no other name stands.

    Raises:
        InputError: a setting is there under two names.
    """
    result: dict[str, Any] = {}
    seen: dict[str, str] = {}
    for key, value in values.items():
        name = key.replace("-", "_") if isinstance(key, str) else shown(key)
        ours = SAME.get(name, name) if name not in names else name
        if ours in seen and name != seen[ours]:
            raise InputError(f"{seen[ours]} and {name} are the same here; give one of the two")
        seen[ours] = name
        result[key if ours == name else ours] = value
    return result


def why_no_setting(name: str) -> str | None:
    """What there is instead of a name that means nothing here."""
    return NO_SETTING.get(name)
