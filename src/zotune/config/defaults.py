"""The method of a run: what its configuration names, and what is chosen where it names nothing."""

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from zotune.zo.estimators import ESTIMATORS, Estimator
from zotune.zo.noise import Noise

if TYPE_CHECKING:
    from zotune.config.settings import Config


def arguments_of(made: Callable[..., Any], config: "Config") -> dict[str, Any]:
    """The settings that the dataclass `made` has fields for, but for those left to its own defaults."""
    names = {field.name for field in fields(config)} & {field.name for field in fields(made)}  # type: ignore[arg-type]
    return {name: getattr(config, name) for name in sorted(names) if getattr(config, name) is not None}


def make_noise(config: "Config") -> Noise:
    """The noise of a run, at its first step."""
    given: dict[str, Any] = {
        "rank": config.noise_rank, "steps": config.noise_steps, "blocks": config.noise_blocks,
        "sparsity": config.sparsity,
    }  # fmt: skip
    kind = config.noise or ("rademacher" if config.estimator == "fzoo" else "gaussian")
    return Noise(kind, **{name: value for name, value in given.items() if value is not None})


def make_estimator(config: "Config") -> Estimator:
    """The estimator of a run, at its first step."""
    assert config.estimator is not None
    made = ESTIMATORS[config.estimator]
    return made(**arguments_of(made, config))


def choose_method(config: "Config", scope: str | None) -> dict[str, Any]:
    """Estimator, optimizer, directions and form of the adapter. Where `config` names none: the best finalists of
    docs/results.md for the scope; for all parameters those of MeZO's paper, whose memory is that of inference."""
    if config.tuning == "full":
        defaults: dict[str, Any] = {"estimator": "spsa", "optimizer": "sgd", "directions": 1}
    else:
        directions, peft_type, init = (16, "lora_fa", "eva") if scope == "activated" else (4, "lora", "kaiming")
        defaults = {"estimator": "one_sided", "optimizer": "adam", "directions": directions, "peft_type": peft_type}
        if config.peft_type in (None, "lora", "lora_fa"):
            defaults["init_lora_weights"] = init
    return {name: getattr(config, name) or default for name, default in defaults.items()}


def default_learning_rate(num_parameters: int, optimizer: str | None, tuning: str = "lora") -> float:
    """By the optimizer and the size of the base model. Small models: what the study in docs/results.md found. Large
    ones: with Adam what backpropagation of LoRA takes, else MeZO's range for OPT with LoRA, 5e-5 .. 1e-4. MeZO's range
    for all parameters is 1e-7 .. 1e-6."""
    if tuning == "full":
        return 1e-6
    small, large = (4e-3, 2e-4) if optimizer in ("adam", "adamw") else (2e-3, 1e-4)
    return small if num_parameters < 100_000_000 else large
