"""SGLang's own options, passed through as they are, and what zotune sets where the user does not.

Names and types are read off SGLang's source files, so that a wrong one is refused at once: importing SGLang takes
seconds, and building its arguments looks at the machine.
"""

import ast
import difflib
import functools
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zotune.errors import InputError

SET_BY_ZOTUNE = {
    "model_path": "--model",
    "dtype": "--dtype",
    "device": "--device",
    "trust_remote_code": "--trust-remote-code",
    "max_lora_rank": "--lora-rank",
    "lora_target_modules": "--target-modules",
    "lora_paths": "--adapter",
    "context_length": "--max-length",
    "skip_tokenizer_init": None,
    "enable_lora": None,
    "page_size": None,  # 1: prompts are cut at any token
    "disable_radix_cache": None,  # exact reuse is the point
    "disable_overlap_schedule": None,  # the scheduler is driven step by step
    "pp_size": None,
    "nnodes": None,
    "speculative_algorithm": None,
    "is_embedding": None,
    "enable_lora_overlap_loading": None,
}
"""Options that the user may not set, and the flag of zotune's that does where there is one."""


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse names that SGLang does not know and those that are zotune's to set.

    Raises:
        InputError: names the option, and the nearest one that exists.
    """
    known = option_types()
    for name in options:
        flag = "--sglang." + name.replace("_", "-")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean --sglang.{close[0].replace('_', '-')}?" if close else ""
            raise InputError(f"{flag}: SGLang has no such option{hint}")
        if name in SET_BY_ZOTUNE:
            instead = SET_BY_ZOTUNE[name]
            raise InputError(f"{flag}: " + (f"use {instead}" if instead else "zotune sets this itself; leave it out"))
    for name in ("tp_size", "dp_size"):
        if type(options.get(name, 1)) is not int or options.get(name, 1) < 1:
            raise InputError(f"--sglang.{name.replace('_', '-')} must be 1 or more, got {options[name]}")


@functools.cache
def option_types() -> dict[str, str]:
    """Every option of SGLang and its type as SGLang's source has it; empty where SGLang is not installed."""
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        return {}
    types: dict[str, str] = {}
    for path in sorted(Path(spec.submodule_search_locations[0]).glob("srt/arg_groups/fields/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
                continue
            annotation = node.annotation
            if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "A":
                inner = annotation.slice
                types[node.target.id] = ast.unparse(inner.elts[0] if isinstance(inner, ast.Tuple) else inner)
    return types


def parse_value(name: str, values: list[str]) -> Any:
    """An option from the words of a command line: whole numbers, numbers, true or false, JSON, else text, by the type
    that SGLang gives it; without a word it is true."""
    if not values:
        return True
    kind = option_types().get(name, "")
    is_text = kind in ("str", "Optional[str]", "str | None")
    parsed = [text if is_text else _plain(text) for text in values]
    return parsed if len(parsed) > 1 or "List[" in kind or "list[" in kind else parsed[0]


def _plain(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return json.loads(text)
    except ValueError:
        return text


def server_options(
    given: Mapping[str, Any],
    *,
    model: str,
    dtype: str,
    device: str,
    trust_remote_code: bool,
    rank: int,
    target_modules: Sequence[str],
    num_slots: int,
    max_tokens: int | None,
) -> dict[str, Any]:
    """Fields of SGLang's ServerArgs: the user's, over zotune's defaults, under what zotune needs.

    Args:
        num_slots: adapters at a time; 0 is the bare model.
        max_tokens: default for SGLang's max_total_tokens; None leaves it to SGLang.
    """
    defaults: dict[str, Any] = {
        "log_level": "error",
        "random_seed": 0,
        "grammar_backend": "none",
        "max_total_tokens": max_tokens,
        "sampling_backend": "pytorch",
    }
    if device == "cpu":
        defaults |= {
            "attention_backend": "torch_native",
            "lora_backend": "torch_native",
            "disable_cuda_graph": True,
            "mem_fraction_static": 0.5,
            "max_running_requests": 256,
        }
    needed: dict[str, Any] = {
        "model_path": model,
        "dtype": dtype,
        "device": device.partition(":")[0],
        "trust_remote_code": trust_remote_code,
        "skip_tokenizer_init": True,
        "page_size": 1,
        "disable_overlap_schedule": True,
    }
    if num_slots:
        needed |= {
            "enable_lora": True,
            "max_lora_rank": rank,
            "lora_target_modules": list(target_modules),
            "max_loras_per_batch": num_slots + 1,
        }
    if device.startswith("cuda:"):
        defaults["base_gpu_id"] = int(device.partition(":")[2])
    return {**defaults, **given, **needed}
