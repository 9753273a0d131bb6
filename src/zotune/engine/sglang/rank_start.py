"""What the trainer's process and its ranks agree on: the first message to a rank, and where theta lies in memory."""

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from zotune.adapter.spec import LoraSpec


@dataclass(frozen=True)
class RankStart:
    """What a rank needs to begin."""

    rank: int
    port: int
    options: dict[str, Any]
    spec: LoraSpec
    shapes: dict[str, tuple[int, ...]]
    num_slots: int
    parent: int


def mapped_theta(file: int, shapes: Mapping[str, tuple[int, ...]], writable: bool) -> dict[str, np.ndarray]:
    """Theta's tensors as float32 views of a file in memory, one after the other."""
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    num_bytes = max(4 * sum(sizes.values()), 1)
    access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
    memory = np.frombuffer(mmap.mmap(file, num_bytes, access=access), dtype=np.float32) if sizes else np.empty(0)
    starts = np.cumsum([0, *sizes.values()])
    return {
        name: memory[begin : begin + sizes[name]].reshape(shapes[name])
        for name, begin in zip(shapes, starts[:-1].tolist(), strict=True)
    }
