"""Checkpoints: theta and the state of the optimizer after a step, for runs whose updates no journal holds.

RUN/checkpoints/step-000100.safetensors has theta under "theta/NAME" and the state under "state/NAME". Its metadata
hold the step and a digest of each. A file is written whole, and is read only where it is what was written and, by the
digest in the journal, of the same run.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from zotune.errors import InputError
from zotune.files import write_whole
from zotune.zo.digest import digest
from zotune.zo.optimizers import Tensors
from zotune.zo.protocol import Theta

logger = logging.getLogger("zotune")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Theta and the optimizer's state after `step` steps."""

    step: int
    theta: Theta
    state: Tensors


def write_checkpoint(folder: Path, step: int, theta: Theta, state: Mapping[str, np.ndarray]) -> None:
    """Write a checkpoint; it is on disk when this returns.

    Raises:
        OSError: the disk refused; no half of a checkpoint is left.
    """
    tensors = {f"theta/{name}": value for name, value in theta.items()}
    tensors |= {f"state/{name}": value for name, value in state.items()}
    metadata = {"step": str(step), "theta": digest(theta), "state": digest(state)}
    write_whole(_path(folder, step), lambda path: save_file(tensors, path, metadata))


def read_checkpoint(folder: Path, step: int, theta_digest: str | None = None) -> Checkpoint:
    """The checkpoint of a step; `theta_digest` is what the journal says of theta after it.

    Raises:
        InputError: there is none, or it is damaged or another run's.
    """
    path = _path(folder, step)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except FileNotFoundError as error:
        raise InputError(f"there is no checkpoint {path}") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    theta, state = (
        {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        for prefix in ("theta/", "state/")
    )
    if metadata != {"step": str(step), "theta": digest(theta), "state": digest(state)}:
        raise InputError(f"{path} is damaged, or it is no checkpoint of step {step}")
    if theta_digest not in (None, metadata["theta"]):
        raise InputError(f"{path} is another run's: its numbers are not those that the journal says of step {step}")
    return Checkpoint(step, theta, state)


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint, whole or not, in their order."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(found[1]) for name in names if (found := re.fullmatch(r"step-(\d+)\.safetensors", name)))


def nearest(folder: Path, step: int, digests: Mapping[int, str]) -> Checkpoint | None:
    """The last whole checkpoint of at most `step` steps; one that is not is named in a warning and passed over.

    Args:
        digests: what the journal says of theta, by step.
    """
    for found in reversed([found for found in checkpoint_steps(folder) if found <= step]):
        try:
            return read_checkpoint(folder, found, digests.get(found))
        except InputError as error:
            logger.warning("%s; taking the checkpoint before it", error)
    return None


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}.safetensors"
