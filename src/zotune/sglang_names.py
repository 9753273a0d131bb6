"""`sglang.mezo_finetune` and `sglang.MeZOTrainer`: fine-tuning as a part of SGLang, where zotune is installed."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from zotune.finetune import Result
    from zotune.run.trainer import MeZOTrainer as Trainer

KvStrategy = Literal["auto", "activated", "everywhere"]


def mezo_finetune(
    model_path: str,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    *,
    server_args: Any = None,
    kv_strategy: KvStrategy = "auto",
    epsilon: float = 1e-2,
    seed: int = 0,
    **settings: Any,
) -> "Result":
    """Fine-tune a model on SGLang's scheduler, LoRA slots and radix tree (`--engine sglang`).

    Args:
        model_path: local folder or hub id.
        train_dataset, eval_dataset: as of `zotune.mezo_finetune`: a path, a hub id, a list of dicts, a Dataset.
        server_args: SGLang's, as `ServerArgs` or a dict of some of its fields; what zotune needs to set is left out.
        kv_strategy: "activated": the prompts' KV is the base model's, computed once for all probes and steps, and the
            adapter acts from the invocation on; "everywhere": an ordinary LoRA, whose KV is each probe's own; "auto":
            activated where the task has an invocation.
        epsilon, seed: how far probes are from theta; of the directions and the order of the data.
        settings: all others of `zotune.mezo_finetune`.

    Raises:
        InputError: something asked for cannot be done; nothing was written.
        TrainingError: training had to stop; the run folder holds all steps before.
    """
    from zotune.finetune import run

    return run(MeZOTrainer(
        model_path, train_dataset, eval_dataset, server_args=server_args, kv_strategy=kv_strategy, epsilon=epsilon,
        seed=seed, **settings,
    ))  # fmt: skip


def MeZOTrainer(  # it is known as a class: `sglang.MeZOTrainer(...)` gives one
    model_path: str,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    *,
    server_args: Any = None,
    kv_strategy: KvStrategy = "auto",
    **settings: Any,
) -> "Trainer":
    """As `mezo_finetune`, but before its first step: `train()`, or `train_step(batch)` with batches of one's own."""
    from zotune.errors import InputError
    from zotune.finetune import make_trainer

    if kv_strategy not in ("auto", "activated", "everywhere"):
        raise InputError(f"kv_strategy: expected auto, activated or everywhere, got {kv_strategy!r}")
    if kv_strategy != "auto":
        settings["scope"] = kv_strategy
    options = {**server_options(server_args), **settings.pop("sglang", {})}
    return make_trainer(model_path, train_dataset, eval_dataset, engine="sglang", sglang=options, **settings)


def server_options(server_args: Any) -> dict[str, Any]:
    """The options of SGLang's that were asked for: fields of `ServerArgs` that are not as SGLang has them by default,
    or a dict; without those that zotune sets itself."""
    from zotune.engine.sglang.options import SET_BY_ZOTUNE
    from zotune.errors import InputError

    if server_args is None:
        return {}
    if hasattr(server_args, "__struct_fields__"):
        default = type(server_args)(model_path=server_args.model_path)
        given = {
            name: value
            for name in server_args.__struct_fields__
            if (value := getattr(server_args, name)) != getattr(default, name)
        }
    elif isinstance(server_args, Mapping):
        given = dict(server_args)
    else:
        raise InputError(f"server_args: expected SGLang's ServerArgs or a dict, got {type(server_args).__name__}")
    return {name: value for name, value in given.items() if name not in SET_BY_ZOTUNE}


def announce() -> None:
    """Set the names on SGLang, where it has been imported."""
    if (sglang := sys.modules.get("sglang")) is not None:
        for function in (mezo_finetune, MeZOTrainer):
            setattr(sglang, function.__name__, function)
