"""The method of a run: what its settings name, and what is chosen where they name nothing."""

from dataclasses import fields
from typing import Any

from zotune.config.fields import Fields
from zotune.config.tables import settings_for
from zotune.zo.estimators import ESTIMATORS, Estimator
from zotune.zo.noise import Noise
from zotune.zo.optimizers import OPTIMIZERS, Optimizer

SMALL_MODEL, LARGE_MODEL = 100_000_000, 1_000_000_000  # parameters


PROBING = ("directions", "epsilon", "noise", "noise_steps", "noise_blocks", "sparsity", "clip")  # settings


def choose_method(config: Fields, scope: str | None, lens: bool = False) -> dict[str, Any]:
    """Estimator, optimizer, directions, what is trained and where A starts. Where `config` names none: the best of
    docs/results.md for the scope; for all parameters those of MeZO's paper, whose memory is that of inference; for
    backpropagation LoRA as PEFT starts it. Probes find more where A is frozen; with a gradient, A learns too.

    Args:
        lens: whether the lens is the best for the model, and the engine, the objective and the model have it.
    """
    estimator = config.estimator or ("lens" if lens and _leaves_room_for_lens(config) else None)
    from_data = estimator == "lens" or (scope == "activated" and estimator != "backprop")
    tuning = config.tuning or ("lora_fa" if from_data and estimator != "lens" else "lora")
    defaults: dict[str, Any] = {"tuning": tuning}
    if tuning == "full":
        defaults |= {"estimator": "spsa", "optimizer": "sgd", "directions": 1}
    elif estimator in ("lens", "backprop"):
        defaults |= {"estimator": estimator, "optimizer": "adam", "directions": None}
    elif config.judges_texts:
        defaults |= {"estimator": "es", "optimizer": "adam", "directions": 16}
    else:
        defaults |= {
            "estimator": "one_sided", "optimizer": "adam", "directions": 16 if scope == "activated" else 4,
        }  # fmt: skip
    if tuning in ("lora", "lora_fa") and config.adapter is None:
        defaults["init_lora_weights"] = "eva" if from_data else "kaiming"
    return {name: getattr(config, name) or default for name, default in defaults.items()}


def _leaves_room_for_lens(config: Fields) -> bool:
    """Whether nothing was asked for that the lens has no use for."""
    unused = (item for item in fields(config) if item.name in PROBING)
    return (
        config.tuning in (None, "lora", "lora_fa")
        and config.optimizer in (None, "adam", "adamw")
        and config.adapter is None
        and all(getattr(config, item.name) == item.default for item in unused)
    )


def make_noise(config: Fields) -> Noise:
    """The noise of a run, at its first step."""
    kind = config.noise or ("rademacher" if config.estimator == "fzoo" else "gaussian")
    masks: dict[str, Any] = {"steps": config.noise_steps, "blocks": config.noise_blocks, "sparsity": config.sparsity}
    given = {name: value for name, value in masks.items() if value is not None}
    return Noise(kind, **given, **settings_for(config, kind, Noise))


def make_estimator(config: Fields) -> Estimator:
    """The estimator of a run, at its first step; its method is chosen."""
    assert config.estimator is not None
    made = ESTIMATORS[config.estimator]
    return made(**shared_settings(config, made), **settings_for(config, config.estimator, made))


def optimizer_arguments(config: Fields) -> dict[str, Any]:
    """The optimizer of a run as its journal names it: a key of OPTIMIZERS, and the arguments that it is made with."""
    assert config.optimizer is not None
    made = OPTIMIZERS[config.optimizer]
    optimizer: Optimizer = made(**shared_settings(config, made), **settings_for(config, config.optimizer, made))
    return {"name": config.optimizer, **vars(optimizer)}


def shared_settings(config: Fields, made: Any) -> dict[str, Any]:
    """The settings of Config that the dataclass `made` has fields for, but for those left to its own defaults."""
    names = {item.name for item in fields(config)} & {item.name for item in fields(made)}
    return {name: getattr(config, name) for name in sorted(names) if getattr(config, name) is not None}


def default_learning_rate(num_parameters: int, estimator: str, optimizer: str, tuning: str, head: str = "lm") -> float:
    """By the method and the size of the base model: what docs/results.md found with models of 4 and of 135 million
    parameters; for larger ones, which nobody has searched, a fifth of that. Above the small ones, other optimizers than
    Adam have MeZO's range for OPT with LoRA, 5e-5 .. 1e-4; all parameters have its 1e-7 .. 1e-6."""
    if tuning == "full":
        return 1e-6
    if estimator == "backprop":
        return 1e-3 if num_parameters < SMALL_MODEL else 3e-3 if num_parameters < LARGE_MODEL else 2e-4
    if estimator == "lens":
        return 3e-3 if head == "lm" else 1e-3  # a new head stood still at more (docs/decisions.md)
    if optimizer not in ("adam", "adamw"):
        return 2e-3 if num_parameters < SMALL_MODEL else 1e-4
    if num_parameters < SMALL_MODEL:
        return 4e-3
    if estimator == "es":
        return 3e-3 if num_parameters < LARGE_MODEL else 6e-4
    return 1e-2 if num_parameters < LARGE_MODEL else 2e-3
