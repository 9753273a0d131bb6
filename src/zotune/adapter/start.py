"""Where a run starts from when its adapter's A comes from the data, or all of it from another adapter: tensors that lie
in the run folder.

Everything else that a run starts from is drawn from its seed; these are kept, and the journal names them by digest.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from zotune.errors import InputError
from zotune.files import write_whole

START_FILE = "start.safetensors"
LENS = "lens."  # what the names of a lens begin with


@dataclass(frozen=True)
class Start:
    """Tensors under the names in PEFT's files, and those of a lens. Equal where their bytes are (SHA-256)."""

    digest: str
    tensors: Mapping[str, np.ndarray] = field(compare=False, repr=False)

    @classmethod
    def of(cls, tensors: Mapping[str, np.ndarray]) -> "Start":
        return cls(_digest(save(dict(tensors))), tensors)

    def write(self, run_folder: Path) -> None:
        write_whole(run_folder / START_FILE, save(dict(self.tensors)))

    @classmethod
    def read(cls, run_folder: Path, digest: str) -> "Start":
        """The start that a journal names.

        Raises:
            InputError: the file is gone, or is not what it was.
        """
        path = run_folder / START_FILE
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(
                f"{run_folder}: cannot read {START_FILE}, which the run began with ({error.strerror})"
            ) from error
        if _digest(content) != digest:
            raise InputError(f"{path} has changed since the run began")
        return cls(digest, load(content))


def has_lens(start: Start | None) -> bool:
    return start is not None and any(name.startswith(LENS) for name in start.tensors)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
