"""What SGLang 0.5.23 lacks to adapt OPT, on every device, as a hook and one entry of a list.

`OPTForCausalLM` does not say how wide its modules are, and the general rule wants a field that an OPTConfig lacks; the
hook reads the widths off the configuration. `fc2` is split over ranks by its inputs, which SGLang's LoRA knows of
`down_proj` and others by name; OPT's name is added.
"""

from collections.abc import Callable
from typing import Any

HOOKS = "sglang.srt.plugins.hook_registry:HookRegistry.register"
WIDTHS = "sglang.srt.lora.utils:get_hidden_dim"
BY_INPUTS = "sglang.srt.lora.utils:ROW_PARALLELISM_LINEAR_LORA_NAMES"
NAMES = (HOOKS, WIDTHS, BY_INPUTS)


def register() -> None:
    from sglang.srt.lora.utils import ROW_PARALLELISM_LINEAR_LORA_NAMES
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(WIDTHS.replace(":", "."), _widths, HookType.AROUND)
    if "fc2" not in ROW_PARALLELISM_LINEAR_LORA_NAMES:
        ROW_PARALLELISM_LINEAR_LORA_NAMES.append("fc2")


def _widths(original: Callable[..., Any], module_name: str, config: Any, base_model: Any, *args: Any, **kw: Any) -> Any:
    """(inputs, outputs) of a module, outputs of stacked ones summed."""
    if type(base_model).__name__ == "OPTForCausalLM" and not hasattr(base_model, "get_hidden_dim"):
        hidden, inner = config.hidden_size, config.ffn_dim
        widths = {
            "qkv_proj": (hidden, 3 * hidden),
            "out_proj": (hidden, hidden),
            "fc1": (hidden, inner),
            "fc2": (inner, hidden),
        }
        if module_name in widths:
            return widths[module_name]
    return original(module_name, config, base_model, *args, **kw)
