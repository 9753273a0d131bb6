"""What a job asks for: settings of `zotune train`, with records, or with paths in a folder that the operator allows.

What a server decides is not a job's to set: the model and what it computes on, where files go, and whose code runs.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from zotune.config.elsewhere import in_our_names
from zotune.config.reading import make_config
from zotune.config.settings import Config
from zotune.data.records import json_lines
from zotune.errors import InputError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_RECORDS = 1_000_000
SERVER_OWN = (
    "model", "engine", "device", "dtype", "quantization", "kv_cache_gb", "num_threads", "output_dir", "overwrite",
    "stream_data", "trust_remote_code", "tables", "sglang", "ray", "run_name", "report_to",
)  # fmt: skip
PATHS = ("train_data", "eval_data", "adapter", "chat_template")
RECORDS = {"records": "train_data", "eval_records": "eval_data"}


@dataclass(frozen=True)
class JobRequest:
    """A job that may begin: its settings as for `make_config`, and its records, by the setting that they stand for."""

    name: str
    settings: Mapping[str, Any]
    records: Mapping[str, bytes] = field(default_factory=dict)
    stream: bool = False


def read_request(body: Any, model: str, dtype: str, allowed: Path, default_name: str) -> JobRequest:
    """Check the body of a request.

    Args:
        body: `name`, `records` and `eval_records` (lists of objects), `stream`, and settings by their names.
        model, dtype: the server's.
        allowed: the folder that paths must be in.

    Raises:
        InputError: in one sentence that names the field.
    """
    if not isinstance(body, Mapping):
        raise InputError('a job is an object of settings, such as {"task": "sst2", "num_steps": 100}')
    given = {str(key).replace("-", "_"): value for key, value in body.items() if value is not None}
    settings = in_our_names(given, {item.name: item for item in fields(Config)})
    name = settings.pop("name", None) or default_name
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        raise InputError(f"name: {name!r} is no name of a job; use letters, digits, '.', '_' and '-', 64 at most")
    stream = settings.pop("stream", False)
    if not isinstance(stream, bool):
        raise InputError(f"stream: expected true or false, got {stream!r}")
    if own := [key for key in SERVER_OWN if key in settings]:
        raise InputError(f"{own[0]} is the server's to say; leave it out")
    rewards = settings.get("reward")
    if code := [text for text in (rewards if isinstance(rewards, list) else [rewards]) if ":" in str(text)]:
        raise InputError(f"reward: {code[0]!r} is code, which no job brings; use a built-in reward by its name")
    records = {}
    for key, target in RECORDS.items():
        rows = settings.pop(key, None)
        if rows is None:
            continue
        if settings.get(target) is not None:
            raise InputError(f"{key} and {target} are two sources of the same; give one")
        records[target] = _lines(key, rows)
    for key in PATHS:
        if (path := settings.get(key)) is not None:
            settings[key] = str(allowed_path(key, path, allowed))
    make_config({**settings, "model": model, "dtype": dtype, "engine": "sglang"})
    return JobRequest(name, settings, records, stream)


def allowed_path(key: str, path: Any, allowed: Path) -> Path:
    """A path of a request, which must lead to something in the folder that the operator allows.

    Raises:
        InputError: it leads elsewhere, or to nothing.
    """
    if not isinstance(path, str):
        raise InputError(f"{key}: expected a path, got {path!r}")
    try:
        found, inside = (allowed / path).resolve(), allowed.resolve()
        exists = found.exists()
    except (OSError, ValueError):
        raise InputError(f"{key}: {path!r} is no path") from None
    if not found.is_relative_to(inside):
        raise InputError(f"{key}: {path} is outside the folder of data that this server allows")
    if not exists:
        raise InputError(f"{key}: {path} is not in the folder of data that this server allows")
    return found


def _lines(key: str, rows: Any) -> bytes:
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not rows:
        raise InputError(f"{key}: expected a list of objects with the fields of an example")
    if len(rows) > MAX_RECORDS:
        raise InputError(
            f"{key}: {len(rows)} records are more than {MAX_RECORDS}; put them into a file of the server's"
        )
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise InputError(f"{key}: record {number} is no object")
    return json_lines(key, list(rows))
