"""Theta in SGLang's LoRA slots, written in place: slot k becomes theta + distance_k * z(seed_k).

SGLang keeps the adapters of a batch in slots of two tensors per module: A as [slots, rank, inputs], B as [slots,
outputs, rank], with q, k and v (gate and up) stacked under one name, and each rank of a tensor-parallel group holding
its share. Every rank holds all of theta in fp32, draws all of z itself from the seed and the tensor's name, and
writes its share of the sum, rounded once to the slot's own dtype. Nothing but seeds and distances is sent.

Which numbers are a rank's share is not worked out here: SGLang's own functions slice a tensor of indices.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from zotune.adapter.forms import lora_matrices
from zotune.adapter.spec import LoraSpec
from zotune.errors import InputError
from zotune.zo.protocol import Probe, Theta, points

_POOL = "sglang.srt.lora.mem_pool:LoRAMemoryPool."
NAMES = (
    "sglang.srt.lora.lora_registry:LoRARef",
    "sglang.srt.lora.lora_manager:LoRAManager.load_lora_adapter_from_tensors",
    "sglang.srt.lora.lora_manager:LoRAManager.unload_lora_adapter",
    "sglang.srt.lora.lora_manager:LoRAManager.fetch_new_loras",
    _POOL + "get_tensor",
    _POOL + "get_buffer_id",
    "sglang.srt.lora.utils:LoRAType",
    "sglang.srt.lora.utils:get_target_module_name",
    "sglang.srt.lora.utils:get_normalized_target_modules",
    "sglang.srt.lora.layers:BaseLayerWithLoRA.slice_lora_a_weights",
    "sglang.srt.lora.layers:BaseLayerWithLoRA.slice_lora_b_weights",
)

PARTS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""SGLang's stacked modules and what they are in transformers, in the order in which they are stacked."""

STACKED = {part: stacked for stacked, parts in PARTS.items() for part in parts}


@dataclass(frozen=True)
class _Place:
    """Where a tensor of theta goes in every slot, and which of its rows (B) or columns (A) this rank holds.

    SGLang pads some modules to widths that its kernels like; the padding stays zero.
    """

    buffer: torch.Tensor  # [slots, rows, columns]
    rows: slice
    columns: slice
    share: np.ndarray
    axis: int
    divided: bool = False  # A's columns are divided among the ranks


class Slots:
    """The slots `lora_ids` of `lora`, SGLang's LoRA manager, for a theta of `shapes`."""

    def __init__(
        self,
        lora: Any,
        lora_ids: Sequence[str],
        spec: LoraSpec,
        shapes: Mapping[str, tuple[int, ...]],
        pinned: bool = False,
    ) -> None:
        self.spec, self.shapes = spec, shapes  # of theta
        self.matrices = shapes = dict(spec.matrices) or shapes
        self._lora = lora
        self._references = _register(lora, lora_ids, spec, shapes, pinned)
        self.slots = [lora.memory_pool.get_buffer_id(lora_id) for lora_id in lora_ids]
        modules = {name: module for layer in lora.lora_modules for name, module in layer.items()}
        self.places = {name: _place(name, shapes, modules, lora) for name in shapes}
        self.modules: dict[str, Any] = {  # SGLang's, by the names of their matrices A
            name: modules[_module_name(name)] for name in shapes if name.endswith("lora_A.weight")
        }
        for place in self.places.values():
            place.buffer[self.slots] = 0

    def write(self, theta: Theta, probes: Mapping[int, Probe]) -> None:
        """Make the probes the adapters of their slots; the others stay as they are."""
        adapters = [lora_matrices(point, self.spec) for point in points(theta, list(probes.values()))]
        slots = [self.slots[slot] for slot in probes]
        for name, place in self.places.items():
            stacked = np.stack([adapter[name].take(place.share, place.axis) for adapter in adapters])
            place.buffer[slots, place.rows, place.columns] = torch.from_numpy(stacked).to(
                place.buffer.device, place.buffer.dtype
            )

    def release(self) -> None:
        """Give the slots back."""
        for reference in self._references:
            self._lora.unload_lora_adapter(reference)

    def columns_of(self, name: str, a: np.ndarray) -> np.ndarray:
        """This rank's columns of a matrix A [rank, inputs], zero where SGLang pads the inputs."""
        place = self.places[name]
        own = np.zeros((len(a), place.buffer.shape[2]), dtype=np.float32)
        own[:, place.columns] = a.take(place.share, axis=1)
        return own

    def in_all_columns(self, name: str, own: torch.Tensor) -> torch.Tensor:
        """What this rank has for its columns of a matrix A, among all [rank, inputs]: zero in the others'."""
        place = self.places[name]
        whole = own.new_zeros((len(own), self.matrices[name][1]))
        whole[:, torch.from_numpy(place.share).to(own.device)] = own[:, place.columns]
        return whole

    def whole_inputs(self, name: str, own: torch.Tensor) -> torch.Tensor:
        """Inputs of the module of a matrix A [tokens, inputs], of which this rank has a part, and SGLang may have
        padded them."""
        from sglang.srt.distributed.communication_op import tensor_model_parallel_all_gather

        whole = tensor_model_parallel_all_gather(own) if self.is_divided(name) else own
        return whole[:, : self.matrices[name][1]]

    def is_divided(self, name: str) -> bool:
        """Whether the ranks have different columns of a matrix A."""
        return self.places[name].divided


def _register(
    lora: Any, lora_ids: Sequence[str], spec: LoraSpec, shapes: Mapping[str, tuple[int, ...]], pinned: bool
) -> list[Any]:
    """Let SGLang know of adapters without tensors under these names, and give each its slot beside the base model's."""
    from sglang.srt.lora.lora_registry import LoRARef
    from sglang.srt.lora.utils import get_normalized_target_modules

    config = {
        "r": spec.rank,
        "lora_alpha": spec.alpha * (spec.rank**0.5 if spec.selection.use_rslora else 1),  # SGLang divides by the rank
        "target_modules": sorted({name.split(".lora_")[0].rpartition(".")[2] for name in shapes}),
        "peft_type": "LORA",
    }
    served = lora.memory_pool.target_modules
    if absent := get_normalized_target_modules(config["target_modules"]) - set(served):
        raise InputError(
            f"--target-modules: SGLang adapts {', '.join(_kinds(served))} here, and not {', '.join(_kinds(absent))}; "
            "choose of those, or start it with --lora-target-modules that names the others"
        )
    references = [
        LoRARef(lora_id=lora_id, lora_name=lora_id, lora_path=f"zotune/{lora_id}", pinned=pinned)
        for lora_id in lora_ids
    ]
    for reference in references:
        result = lora.load_lora_adapter_from_tensors(reference, {}, config)
        if not result.success:
            raise InputError(f"--engine sglang: SGLang does not take this adapter: {result.error_message}")
    lora.fetch_new_loras({None, *lora_ids})
    return references


def _place(name: str, shapes: Mapping[str, tuple[int, ...]], modules: Mapping[str, Any], lora: Any) -> _Place:
    from sglang.srt.layers.utils import get_layer_id
    from sglang.srt.lora.utils import LoRAType, get_target_module_name

    part, _, matrix = name.removeprefix("base_model.model.").partition(".lora_")
    part, module_name = part.rpartition(".")[2], _module_name(name)
    if module_name not in modules:
        raise InputError(
            f"--target-modules: SGLang has no module {module_name} to adapt; it has {', '.join(_kinds(modules))}"
        )
    module = modules[module_name]
    kind = LoRAType.LORA_A if matrix.startswith("A") else LoRAType.LORA_B
    target = get_target_module_name(module_name, lora.memory_pool.target_modules)
    buffer = lora.memory_pool.get_tensor(target, get_layer_id(module_name), kind)
    parts = PARTS.get(STACKED.get(part, ""), (part,))
    rank = shapes[name][0] if kind is LoRAType.LORA_A else shapes[name][1]
    if kind is LoRAType.LORA_A:
        own = module.slice_lora_a_weights(torch.arange(_inputs(module))[None].expand(rank, -1))[0]
        columns, share = _part(own, 0, shapes[name][1])
        rows = slice(parts.index(part) * rank, (parts.index(part) + 1) * rank)
        divided = getattr(module.base_layer, "input_size_per_partition", _inputs(module)) < _inputs(module)
        return _Place(buffer, rows, columns, share, axis=1, divided=divided)
    sizes = [_outputs(module, p) for p in parts]
    own = module.slice_lora_b_weights(torch.arange(sum(sizes))[:, None])[:, 0]
    rows, share = _part(own, sum(sizes[: parts.index(part)]), shapes[name][0])
    return _Place(buffer, rows, slice(0, rank), share, axis=0)


def _module_name(name: str) -> str:
    """SGLang's module of a tensor of theta."""
    parent, _, part = name.removeprefix("base_model.model.").partition(".lora_")[0].rpartition(".")
    return f"{parent}.{STACKED.get(part, part)}"


def _part(own: torch.Tensor, start: int, count: int) -> tuple[slice, np.ndarray]:
    """Where the indices start .. start + count lie among this rank's own, and which of them it has."""
    where = torch.nonzero((own >= start) & (own < start + count))[:, 0]
    if not len(where):
        return slice(0, 0), np.zeros(0, dtype=np.int64)
    place = slice(int(where[0]), int(where[-1]) + 1)
    return place, (own[place] - start).numpy()


def _inputs(module: Any) -> int:
    """The inputs of a module over all ranks, padding included."""
    return module.base_layer.input_size


def _outputs(module: Any, part: str) -> int:
    """The outputs of a module, or of one part of a stacked one, over all ranks, padding included."""
    layer = module.base_layer
    if part in PARTS["qkv_proj"]:
        heads = layer.total_num_heads if part == "q_proj" else layer.total_num_kv_heads
        return heads * layer.head_size
    if part in PARTS["gate_up_proj"]:
        return layer.output_sizes[PARTS["gate_up_proj"].index(part)]
    return layer.output_size


def _kinds(modules: Iterable[str]) -> list[str]:
    return sorted({part for name in modules for part in PARTS.get(name.rpartition(".")[2], (name.rpartition(".")[2],))})
