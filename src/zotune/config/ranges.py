"""The numbers that a setting may have: from where to where, whatever the data, the model and the machine are.

What these bound further, such as the rank by the width of the layers, is checked where they are known.
"""

import math
import re
from typing import Any

from zotune.config.fields import Fields
from zotune.errors import InputError
from zotune.values import is_number, number_of, shown

MANY = 10**9
WHOLE: dict[str, tuple[int, int]] = {
    "num_steps": (1, MANY),
    "batch_size": (1, 10**6),
    "lora_rank": (1, 65_536),
    "eval_steps": (1, MANY),
    "logging_steps": (1, MANY),
    "save_steps": (1, MANY),
    "save_total_limit": (1, MANY),
    "early_stopping_patience": (1, MANY),
    "max_train_samples": (1, MANY),
    "max_eval_samples": (1, MANY),
    "num_per_class": (1, MANY),
    "num_demonstrations": (0, 10**6),
    "num_threads": (1, 65_536),
    "noise_steps": (1, MANY),
    "noise_blocks": (1, 65_536),
    "directions": (1, 65_536),
    "batches_per_step": (1, 65_536),
    "reward_processes": (1, 1024),
    "num_generations": (1, 65_536),
    "max_new_tokens": (1, 2**20),
    "max_length": (2, 2**24),
    "warmup_steps": (0, MANY),
    "seed": (0, 2**63 - 1),
    "data_seed": (0, 2**63 - 1),
}
"""Least and most of whole numbers."""

ABOVE_0: dict[str, float] = {
    "epsilon": 1e3,
    "learning_rate": 1e4,
    "lora_alpha": 1e6,
    "clip": 1e12,
    "num_train_epochs": 1e6,
}
"""The most of numbers that lie above 0."""

LEAST_TEMPERATURE, MOST_TEMPERATURE = 1e-3, 1e3  # beyond, logits divided by it are no numbers, or all alike

FROM_0: dict[str, float] = {"weight_decay": 1e3, "kv_cache_gb": 1e6}
"""The most of numbers that may be 0."""


def check_ranges(config: Fields) -> None:
    """Refuse values out of range.

    Raises:
        InputError: with the option, what is allowed and what was got.
    """

    def refuse(name: str, allowed: str) -> None:
        value = getattr(config, name)
        got = f"{value}" if isinstance(value, float | str) else shown(value)
        raise InputError(f"--{name.replace('_', '-')} must be {allowed}, got {got}")

    for name, (least, most) in WHOLE.items():
        value = getattr(config, name)
        if value is not None and value < least:
            refuse(name, f"{least} or more")
        if value is not None and value > most:
            refuse(name, f"at most {most:,}")
    for name, largest in {**ABOVE_0, **FROM_0}.items():
        value = getattr(config, name)
        if value is None:
            continue
        if name in ABOVE_0 and not 0 < value < math.inf:
            refuse(name, "a finite number above 0")
        if not 0 <= value < math.inf:
            refuse(name, "0 or more")
        if value > largest:
            refuse(name, f"at most {largest:,g}")
    if config.sparsity is not None and not 0 <= config.sparsity < 1:
        refuse("sparsity", "0 or more and below 1")
    if not re.fullmatch(r"auto|cpu|(cuda|mps)(:\d{1,4})?", config.device):
        refuse("device", "auto, cpu, cuda or cuda:N")
    if config.temperature is not None:
        checked_temperature(config.temperature)
    if config.top_p is not None and not 0 < config.top_p <= 1:
        refuse("top_p", "above 0 and at most 1")
    if config.lr_scheduler_type == "constant" and config.warmup_steps:
        raise InputError("--warmup-steps has no effect with --lr-scheduler-type constant; use constant_with_warmup")
    if config.warmup_steps > config.num_steps:
        refuse("warmup_steps", f"at most --num-steps ({config.num_steps})")
    if config.target_modules is not None and not config.target_modules:
        raise InputError("--target-modules names no module")


def checked_temperature(value: Any) -> float:
    """A temperature that tokens can be drawn at.

    Raises:
        InputError: with what is allowed and what was got.
    """
    if not is_number(value):
        raise InputError(f"--temperature: expected a number, got {shown(value)}")
    value = number_of(value)
    if value < 0 or math.isnan(value):
        raise InputError(f"--temperature must be 0 or more, got {value}")
    if value != 0 and not LEAST_TEMPERATURE <= value <= MOST_TEMPERATURE:
        raise InputError(f"--temperature must be 0, or from {LEAST_TEMPERATURE:g} to {MOST_TEMPERATURE:g}, got {value}")
    return value
