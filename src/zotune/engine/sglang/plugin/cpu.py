"""What SGLang 0.5.23 lacks to run LoRA and tensor parallelism on a machine without an accelerator, as hooks.

They are registered only where PyTorch sees no accelerator, and change no number.

1. Its LoRA layers and its `torch_native` LoRA backend ask for pinned memory, which PyTorch refuses where there is
   nothing to pin it for. The hooks drop the request.
2. Its groups of ranks ask for NCCL and for CUDA's all-reduce; on a CPU they get Gloo alone.
3. Its rotary embedding imports a kernel of vLLM's unless its module believes in a CPU; PyTorch's own is used then.

`cores_of_ranks` is what SGLang asks of the environment for several ranks on one CPU.
"""

import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

HOOKS = "sglang.srt.plugins.hook_registry:HookRegistry.register"
_LAYERS = "sglang.srt.lora.layers:"
PINNING = (
    _LAYERS + "VocabParallelEmbeddingWithLoRA.__init__",
    _LAYERS + "ParallelLMHeadWithLoRA.__init__",
    _LAYERS + "ColumnParallelLinearWithLoRA.__init__",
    _LAYERS + "MergedColumnParallelLinearWithLoRA.set_lora_info",
    _LAYERS + "QKVParallelLinearWithLoRA.__init__",
    _LAYERS + "RowParallelLinearWithLoRA.set_lora_info",
    "sglang.srt.lora.backend.torch_backend:TorchNativeLoRABackend.prepare_lora_batch",
)
GROUP = "sglang.srt.distributed.parallel_state:GroupCoordinator.__init__"
ROTARY = "sglang.srt.layers.rotary_embedding.base:_is_cpu"
BINDING = "SGLANG_CPU_OMP_THREADS_BIND"
NAMES = (HOOKS, *PINNING, GROUP, ROTARY)


def has_accelerator() -> bool:
    return torch.accelerator.is_available()


def register() -> None:
    """Register the hooks; SGLang applies them when all plugins have had their turn."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(GROUP.replace(":", "."), _gloo_alone, HookType.AROUND)
    import sglang.srt.layers.rotary_embedding.base as rotary

    rotary._is_cpu = True
    for name in PINNING:
        HookRegistry.register(name.replace(":", "."), _unpinned, HookType.AROUND)


def cores_of_ranks(num_ranks: int) -> dict[str, str]:
    """Environment that gives each of several ranks its share of this process's cores; empty where the user set it."""
    if num_ranks == 1 or has_accelerator() or BINDING in os.environ:
        return {}
    cores = sorted(os.sched_getaffinity(0))
    shares = [cores[rank * len(cores) // num_ranks : (rank + 1) * len(cores) // num_ranks] for rank in range(num_ranks)]
    filled = [share or [cores[rank % len(cores)]] for rank, share in enumerate(shares)]
    return {BINDING: "|".join(",".join(map(str, share)) for share in filled)}


class _WithoutPinning(TorchFunctionMode):
    """Inside, PyTorch's functions ignore `pin_memory`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        kwargs.pop("pin_memory", None)
        return args[0] if func is torch.Tensor.pin_memory else func(*args, **kwargs)


def _unpinned(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with _WithoutPinning():
        return original(*args, **kwargs)


def _gloo_alone(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    given = inspect.signature(original).bind(*args, **kwargs)
    given.arguments |= {"use_pynccl": False, "use_custom_allreduce": False}
    return original(*given.args, **given.kwargs)
