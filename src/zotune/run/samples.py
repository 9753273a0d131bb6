"""samples.jsonl: what the model wrote at the evaluations of a run, with its rewards, one object a line."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from zotune.files import write_whole
from zotune.zo.objectives import Sample

NUM_FLIPS = 10_000


def write_samples(path: Path, step: int, samples: Sequence[Sample]) -> None:
    """Add those of the evaluation after `step`; what came from there on, before a resume, is gone.

    Raises:
        OSError: the disk refused; the file is as it was.
    """
    before = [line for line in read_samples(path) if line["step"] < step]
    lines = [*before, *({"step": step, **asdict(sample)} for sample in samples)]
    write_whole(path, b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines))


def read_samples(path: Path) -> list[dict[str, Any]]:
    """All that are there; a line that a power cut has damaged ends them."""
    found: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            value = json.loads(line)
        except ValueError:
            break
        if not (isinstance(value, dict) and {"step", "reward"} <= value.keys()):
            break
        found.append(value)
    return found


def paired_gain(path: Path) -> dict[str, float] | None:
    """How the rewards of the same prompts changed from the first evaluation to the last: the mean difference, half of
    its 95 % interval (normal), and p, the share of random changes of sign with as large a mean (Fisher's paired test).

    None: there are not two evaluations of the same prompts.
    """
    lines = read_samples(path)
    steps = sorted({line["step"] for line in lines})
    if len(steps) < 2:
        return None
    first, last = ([line["reward"] for line in lines if line["step"] == step] for step in (steps[0], steps[-1]))
    if len(first) != len(last):
        return None
    pairs = [(b, a) for b, a in zip(first, last, strict=True) if b is not None and a is not None]
    if len(pairs) < 2:
        return None
    gains = np.array([after - before for before, after in pairs])
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(NUM_FLIPS, len(gains)))
    as_large = np.abs((signs * gains).mean(axis=1)) >= abs(gains.mean()) - 1e-12
    return {
        "mean": float(gains.mean()),
        "half_interval_95": float(1.959963984540054 * gains.std(ddof=1) / np.sqrt(len(gains))),
        "p_value": float((1 + as_large.sum()) / (1 + NUM_FLIPS)),
    }
