"""adapter_config.json of PEFT, read: the form of an adapter, or the name of the setting that zotune has not.

A setting that changes numbers is read or refused. So is a setting that is not known here, unless it is off.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from zotune.adapter.spec import AdapterSpec, LoraSpec, PromptSpec, Selection
from zotune.errors import InputError

# Where an adapter comes from, and how it was trained.
_SHARED = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "runtime_config",
}  # fmt: skip
_LORA = {
    "r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern",
    "alpha_pattern", "use_rslora", "alora_invocation_tokens", "init_lora_weights", "bias", "modules_to_save",
    # of training, of the start, or what PEFT finds out for itself
    "lora_dropout", "fan_in_fan_out", "merge_weights", "megatron_core", "qalora_group_size", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config",
}  # fmt: skip
_PROMPT = {
    "num_virtual_tokens", "num_transformer_submodules", "token_dim", "num_attention_heads", "num_layers",
    "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs", "modules_to_save",
}  # fmt: skip
_LARGEST = 1e30  # that an alpha may be
_MOST = 2**31  # that may be counted
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")  # that leave the base model as it is


def read_settings(config: Any, path: str) -> AdapterSpec:
    """The form of the adapter whose settings lie at `path`.

    Raises:
        InputError: names the file and the setting that is missing, wrong or not supported.
    """
    kind = config.get("peft_type") if isinstance(config, dict) else "no settings"
    if kind == "LORA":
        return _lora(_Settings(config, path, _LORA))
    if kind == "PROMPT_TUNING":
        return _prompt(_Settings(config, path, _PROMPT))
    raise InputError(f"--adapter: {path} has peft_type {kind!r}; only LoRA and prompt-tuning adapters can be loaded")


def _lora(settings: "_Settings") -> LoraSpec:
    settings.allow("bias", (None, "none"), "trained biases of the base model are not supported")
    settings.allow(
        "init_lora_weights", _STARTS, "PEFT moves the base model's weights for it; let PEFT convert the adapter "
        "as it saves it (path_initial_model_for_weight_conversion)",
    )  # fmt: skip
    targets = settings.names("target_modules", required=True)
    if not isinstance(targets, str) and "all-linear" in map(str.lower, targets):
        settings.refuse("target_modules", "PEFT takes all-linear as a text, and not in a list")
    layers = settings.get("layers_to_transform", "a number or a list of numbers", _are_indices, [])
    layers = [layers] if isinstance(layers, int) else layers
    pattern = settings.names("layers_pattern")
    if isinstance(targets, str) and layers:
        settings.refuse("layers_to_transform", "PEFT takes it only where target_modules is a list")
    if pattern and not layers:
        settings.refuse("layers_pattern", "PEFT takes it only beside layers_to_transform")
    invocation = settings.get("alora_invocation_tokens", "a list of token ids", _are_ids, None)
    return LoraSpec(
        rank=settings.get("r", "a whole number above 0", _is_count),
        alpha=settings.get("lora_alpha", "a finite number", _is_number),
        target_modules=targets,
        invocation_tokens=None if invocation is None else tuple(invocation),
        fan_in_fan_out=settings.get("fan_in_fan_out", "true or false", _is_flag, False),
        selection=Selection(
            exclude_modules=settings.names("exclude_modules"),
            layers_to_transform=tuple(layers),
            layers_pattern=(pattern,) if isinstance(pattern, str) and pattern else tuple(pattern),
            rank_pattern=settings.pattern("rank_pattern", "whole numbers above 0", _is_count),
            alpha_pattern=settings.pattern("alpha_pattern", "finite numbers", _is_number),
            use_rslora=settings.get("use_rslora", "true or false", _is_flag, False),
        ),
        modules_to_save=_whole_modules(settings),
    )


def _whole_modules(settings: "_Settings") -> tuple[str, ...]:
    whole = settings.names("modules_to_save")
    if whole and (settings.get("task_type", "a text", _is_text, None) != "SEQ_CLS" or isinstance(whole, str)):
        settings.refuse("modules_to_save", "zotune trains whole modules as the head of a classifier alone (SEQ_CLS)")
    return tuple(whole)


def _prompt(settings: "_Settings") -> PromptSpec:
    settings.allow("num_transformer_submodules", (None, 1), "a causal language model has one")
    count = settings.get("num_virtual_tokens", "a whole number above 0", _is_count)
    return PromptSpec(count, modules_to_save=_whole_modules(settings))


class _Settings:
    """The settings of an adapter, read by their names; what is not in `known` must be off."""

    def __init__(self, config: Mapping[str, Any], path: str, known: set[str]) -> None:
        self._config, self._path = config, path
        for name, value in config.items():
            if name not in known | _SHARED and value:
                self.refuse(name, "zotune does not have it, and it changes what an adapter computes")

    def refuse(self, name: str, why: str) -> None:
        raise InputError(f"--adapter: {self._path} has {name} {_shown(self._config.get(name))}: {why}")

    def allow(self, name: str, values: tuple[Any, ...], why: str) -> None:
        if not any(self._config.get(name) is value or self._config.get(name) == value for value in values):
            self.refuse(name, why)

    def get(self, name: str, allowed: str, is_right: Callable[[Any], bool], *default: Any) -> Any:
        """A setting, or its default where it is absent or null; without a default it must be there."""
        value = self._config.get(name)
        if value is None:
            if not default:
                raise InputError(f"--adapter: {self._path} has no {name}")
            return default[0]
        if not is_right(value):
            self.refuse(name, f"it must be {allowed}")
        return value

    def names(self, name: str, required: bool = False) -> tuple[str, ...] | str:
        """Names, or a regular expression."""
        default = () if required else ((),)
        value = self.get(name, "a text or a list of texts", _are_names, *default)
        if required and not value:
            self.refuse(name, "it names no module")
        if isinstance(value, str):
            self._check_expression(name, value)
            return value
        return tuple(value)

    def pattern(self, name: str, allowed: str, is_right: Callable[[Any], bool]) -> tuple[tuple[str, Any], ...]:
        """Numbers by the regular expressions of module names, in the order in which PEFT tries them."""
        value = self.get(
            name, f"{allowed} by names of modules",
            lambda value: isinstance(value, dict) and all(map(is_right, value.values())), {},
        )  # fmt: skip
        for expression in value:
            self._check_expression(name, expression)
        return tuple(value.items())

    def _check_expression(self, name: str, expression: str) -> None:
        try:
            re.compile(expression)
        except re.error as error:
            self.refuse(name, f"{expression!r} is not a regular expression ({error})")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MOST


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _are_names(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) and name for name in value))


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int and 0 <= token < _MOST for token in value)


def _are_indices(value: Any) -> bool:
    return all(type(index) is int and index >= 0 for index in (value if isinstance(value, list) else [value]))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
