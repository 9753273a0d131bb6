"""Engines score probes. They know models and devices, and nothing of training, data files or configuration.

`ENGINES` names the kinds that a run may have, `--engine`.
"""

from zotune.engine.kind import EngineKind
from zotune.engine.ray.kind import RayKind
from zotune.engine.sglang.kind import SglangKind
from zotune.engine.torch.kind import PlainKind, TorchKind

_HERE: dict[str, EngineKind] = {"torch": TorchKind(), "plain": PlainKind(), "sglang": SglangKind()}
ENGINES: dict[str, EngineKind] = {**_HERE, "ray": RayKind(_HERE)}
