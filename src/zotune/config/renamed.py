"""Settings that had other names before: refused with the new name, and read as it in the folders of older runs."""

from collections.abc import Mapping
from typing import Any

from zotune.zo.setting import flag_of

_TABLES = {
    "adam_beta1": ("adam", "beta1"),
    "adam_beta2": ("adam", "beta2"),
    "adam_epsilon": ("adam", "eps"),
    "momentum": ("sgd", "momentum"),
    "hizoo_smoothing": ("hizoo", "smoothing"),
    "es_shaping": ("es", "shaping"),
    "svrg_steps": ("svrg", "steps"),
    "svrg_batches": ("svrg", "batches"),
    "epsilon_steps": ("adaptive", "steps"),
    "noise_rank": ("low_rank", "rank"),
    "num_virtual_tokens": ("prompt_tuning", "num_virtual_tokens"),
}
_BY_OPTIMIZER = ("adam_beta1", "adam_beta2", "adam_epsilon", "momentum")  # the table is that of the run's optimizer
_MERGED = {
    "peft_type": "--tuning lora, lora_fa, vera or prompt_tuning",
    "load_in_4bit": "--quantization nf4",
    "load_in_8bit": "--quantization int8",
}


def new_name(name: str) -> str | None:
    """What takes the place of a setting that is no more, as a flag."""
    if name in _MERGED:
        return _MERGED[name]
    if name not in _TABLES:
        return None
    table, key = _TABLES[name]
    flag = flag_of(table, key)
    others = {"momentum": ("sign", "muon")}.get(name, ("adamw",) if name.startswith("adam_") else ())
    return " or ".join([flag, *(f"--{other}.{key}" for other in others)])


def translated(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run's config.toml, also of one that an older zotune wrote, under today's names."""
    result = {name: value for name, value in values.items() if name not in _TABLES and name not in _MERGED}
    for name in _TABLES.keys() & values.keys():
        table, key = _TABLES[name]
        if name in _BY_OPTIMIZER:
            table = values.get("optimizer", "sgd")  # what an older run had where it named none
        result[table] = {**result.get(table, {}), key: values[name]}
    if values.get("tuning") == "lora" and "peft_type" in values:
        result["tuning"] = values["peft_type"]
    if values.get("load_in_4bit") or values.get("load_in_8bit"):
        result["quantization"] = "nf4" if values.get("load_in_4bit") else "int8"
    if result.get("tuning") in ("full", "prompt_tuning") or "adapter" in values:  # it was written whatever was trained
        result.pop("target_modules", None)
    return result
