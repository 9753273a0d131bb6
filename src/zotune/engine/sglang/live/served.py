"""Adapters of a server's tokenizer manager, replaced while requests use them.

A new version of an adapter is loaded under a name of its own, and then the name that users know is made to mean it, in
one step. Requests that have begun keep the version that they began with, by its id; when the last of them is done, and
some seconds have passed, it is unloaded. KV in the tree lies under the id, too, so that no request sees a mixture.
"""

import asyncio
from pathlib import Path
from typing import Any

from zotune.errors import InputError

_REGISTRY = "sglang.srt.lora.lora_registry:"
_CONTROL = "sglang.srt.managers.tokenizer_control_mixin:TokenizerControlMixin."
NAMES = (
    _REGISTRY + "LoRARef",
    _REGISTRY + "LoRARegistry.get_all_adapters",
    _CONTROL + "load_lora_adapter",
    _CONTROL + "unload_lora_adapter",
    "sglang.srt.managers.io_struct:LoadLoRAAdapterReqInput",
    "sglang.srt.managers.io_struct:UnloadLoRAAdapterReqInput",
)


GRACE_S = 10.0
"""A request looks its adapter up, and is counted as its user a moment later: so long none is unloaded for it."""


class Served:
    """The adapters of jobs, by the names that users know."""

    def __init__(self, manager: Any) -> None:
        self.manager = manager
        self._versions: dict[str, str] = {}
        self._unloading: set[asyncio.Task[None]] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._versions

    async def serve(self, name: str, step: int, folder: Path) -> None:
        """Answer requests for `name` by the adapter in `folder`, which stays there.

        Raises:
            InputError: SGLang does not take it, or the name is another adapter's.
        """
        from sglang.srt.lora.lora_registry import LoRARef
        from sglang.srt.managers.io_struct import LoadLoRAAdapterReqInput

        registry, version, before = self.manager.lora_registry, f"{name}@{step}", self._versions.get(name)
        if before is None and name in registry.get_all_adapters():
            raise InputError(f"the server has another adapter of the name {name}")
        if version == before:
            return
        result = await self.manager.load_lora_adapter(
            LoadLoRAAdapterReqInput(lora_name=version, lora_path=str(folder), pinned=False)
        )
        if not result.success:
            raise InputError(str(result.error_message))
        async with registry._registry_lock.writer_lock:
            found = registry._registry[version]
            reference = LoRARef(lora_id=found.lora_id, lora_name=name, lora_path=str(folder), pinned=False)
            registry._registry[name] = self.manager.lora_ref_cache[name] = reference
        self._versions[name] = version
        if before is not None:
            self._unload_later(before)

    async def withdraw(self, name: str) -> None:
        """Know the name no more."""
        if (version := self._versions.pop(name, None)) is None:
            return
        registry = self.manager.lora_registry
        async with registry._registry_lock.writer_lock:
            registry._registry.pop(name, None)
        self.manager.lora_ref_cache.pop(name, None)
        self._unload_later(version)

    def _unload_later(self, version: str) -> None:
        task = asyncio.create_task(self._unload(version))
        self._unloading.add(task)
        task.add_done_callback(self._unloading.discard)

    async def _unload(self, version: str) -> None:
        await asyncio.sleep(GRACE_S)
        from sglang.srt.managers.io_struct import UnloadLoRAAdapterReqInput

        self.manager.lora_ref_cache.pop(version, None)
        await self.manager.unload_lora_adapter(UnloadLoRAAdapterReqInput(lora_name=version))
