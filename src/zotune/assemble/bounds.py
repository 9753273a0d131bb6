"""Numbers of a new run that its data and its model bound: more than those have is refused before weights are read.

A run that goes on is not asked again: it may have begun before there was a bound.
"""

import logging

import torch

from zotune.adapter.spec import LoraSpec
from zotune.assemble.data import Data
from zotune.assemble.model import Model
from zotune.config.settings import Config
from zotune.engine import ENGINES
from zotune.engine.torch.lora import module_widths
from zotune.errors import InputError

logger = logging.getLogger("zotune")


def check_rank(settings: Config, model: Model) -> None:
    """Refuse a rank that no adapted module has; VeRA's matrices are wider than layers on purpose.

    Raises:
        InputError: with what is allowed.
    """
    spec = LoraSpec(settings.lora_rank, settings.lora_alpha, settings.target_modules or ())
    widest = max(module_widths(model.structure, spec), default=settings.lora_rank)
    if settings.lora_rank > widest and settings.tuning != "vera":
        raise InputError(
            f"--lora-rank must be at most {widest:,}, the width of the widest module that is adapted, "
            f"got {settings.lora_rank:,}"
        )


def check_bounds(config: Config, data: Data) -> None:
    """Refuse numbers that are more than there is, and warn of a patience that is longer than the run.

    Raises:
        InputError: with what is allowed.
    """
    examples = len(data.train)
    if config.batch_size > max(examples, Config.batch_size):
        raise InputError(
            f"--batch-size must be at most {max(examples, Config.batch_size):,}, got {config.batch_size:,}: there are "
            f"{examples:,} training examples"
        )
    looks = (config.num_steps - 1) // config.eval_steps
    known = config.num_train_epochs is None and config.eval_strategy == "steps"
    if known and config.early_stopping_patience is not None and config.early_stopping_patience > looks:
        logger.warning(
            "--early-stopping-patience %d has no effect: --eval-steps %d leaves %d evaluations before the last step",
            config.early_stopping_patience, config.eval_steps, looks,
        )  # fmt: skip
    device = ENGINES[config.engine].device(config.device, config.tables)
    if config.kv_cache_gb is not None and device.startswith("cuda") and torch.cuda.is_available():
        memory = torch.cuda.mem_get_info(device)[1] / 1e9
        if config.kv_cache_gb > memory:
            raise InputError(f"--kv-cache-gb must be at most {memory:.1f}, the memory of {device}")
