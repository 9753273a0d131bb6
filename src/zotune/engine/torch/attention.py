"""Attention of probes that lie side by side over the kept KV of their prompt, as an attention function of transformers.

A row of queries is [probes * suffix]: each token attends to its row's prompt, whose keys and values come from the
prefix cache, and to its own probe's earlier tokens. So one product of all probes' queries with the prompt's keys
serves them all, and no probe pays for another's tokens:

    weights = softmax([q K_prompt', q K_own' + mask]);  output = weights [V_prompt; V_own]

On CPU rows are taken one by one, straight from the cache where a prompt is one run;
elsewhere a batch is padded once and computed at once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch.profiler import record_function
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from zotune.engine.torch.kept_product import KeptProduct, RegatheredProduct

SIDE_BY_SIDE = "zotune_side_by_side"

Kept = Callable[[int], torch.Tensor]
"""Keys (0) or values (1) of prompts, [.., tokens, size]."""


class PromptKV:
    """What the queries of one pass attend to, given to the model as `prompt_kv`.

    Args:
        prompts: each row's KV, run by run: [layers, 2, kv heads, tokens, head size], keys and values.
        visible: bool [rows, suffix, suffix], what a token sees of its own probe.
        num_probes: probes side by side in a row.
        differentiated: whether the pass is one of `forward_mode`.
        dtype: what is computed in; None: in what the model gives.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[torch.Tensor]],
        visible: torch.Tensor,
        num_probes: int,
        differentiated: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.prompts = prompts
        self.dtype = dtype
        self.num_probes = num_probes
        # [rows, kv heads, heads a kv head, probes, suffix, suffix], to be added to scores
        self.own_mask = torch.where(visible, 0.0, -torch.inf)[:, None, None, None]
        self.computed: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.differentiated = differentiated
        self._padded = (
            padded_by_head(prompts, visible.device) if visible.device.type != "cpu" and any(prompts) else None
        )

    def groups(self, layer: int) -> Iterator[tuple[slice, Kept, torch.Tensor | None]]:
        """What is computed together, of all [rows * kv heads]: the prompts' keys and values, and a mask of padding."""
        if self._padded is not None:
            kv, hidden = self._padded
            yield slice(None), lambda which: kv[layer, which].flatten(0, 1), hidden
            return
        nothing = self.computed[layer][0][:, :, :0]
        kv_heads = nothing.shape[1]
        if not any(self.prompts):
            yield slice(None), partial(_same, nothing.flatten(0, 1)), None
            return
        if self.differentiated:
            kv, hidden = padded_by_head([[run[layer] for run in runs] for runs in self.prompts], self.own_mask.device)
            yield slice(None), lambda which: kv[which].flatten(0, 1), hidden
            return
        for row, runs in enumerate(self.prompts):
            kept = partial(joined, runs, layer) if runs else partial(_same, nothing[row])
            yield slice(row * kv_heads, (row + 1) * kv_heads), kept, None


def joined(runs: Sequence[torch.Tensor], layer: int, which: int) -> torch.Tensor:
    """One layer's keys or values of a prompt, without a copy where it is one run."""
    return runs[0][layer, which] if len(runs) == 1 else torch.cat([run[layer, which] for run in runs], dim=1)


def _same(keys_and_values: torch.Tensor, which: int) -> torch.Tensor:
    return keys_and_values


def _keys(kept: Kept) -> torch.Tensor:
    return kept(0).transpose(1, 2)


def padded(prompts: Sequence[Sequence[torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """All prompts [.., kv heads, tokens, size], filled to the longest, and what is filling.

    Returns:
        [.., rows, kv heads, longest, size], and bool [rows, longest].
    """
    lengths = torch.tensor([sum(run.shape[-2] for run in runs) for runs in prompts])
    longest = int(lengths.max())
    some = next(run for runs in prompts for run in runs)
    *first, heads, _, size = some.shape
    kv = some.new_zeros((*first, len(prompts), heads, longest, size))
    for row, runs in enumerate(prompts):
        if runs:
            kv[..., row, :, : lengths[row], :] = torch.cat(list(runs), dim=-2)
    return kv, torch.arange(longest) >= lengths[:, None]


def padded_by_head(
    prompts: Sequence[Sequence[torch.Tensor]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, with what is filling as bool [rows * kv heads, 1, longest]."""
    kv, hidden = padded(prompts)
    return kv, hidden.repeat_interleave(kv.shape[-3], dim=0)[:, None].to(device)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    *,
    prompt_kv: PromptKV,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [rows, heads, probes * suffix, size] -> [rows, tokens, heads, size].

    Raises:
        TypeError: the model asks for more than attention, such as sinks or a cap on scores.
    """
    check_plain(kwargs)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if prompt_kv.dtype is not None:
        query, key, value = (tensor.to(prompt_kv.dtype) for tensor in (query, key, value))
    prompt_kv.computed[layer] = (key, value)
    with record_function("zotune::attention"):
        rows, heads, count, size = query.shape
        kv_heads, probes = key.shape[1], prompt_kv.num_probes
        # [rows * kv heads, all queries of a kv head, size], and the same seen probe by probe
        by_head = query.reshape(rows * kv_heads, -1, size) * (size**-0.5 if scaling is None else scaling)
        by_probe = by_head.view(rows, kv_heads, heads // kv_heads, probes, count // probes, size)
        own_keys = key.reshape(rows, kv_heads, 1, probes, count // probes, size)
        own_scores = by_probe @ own_keys.transpose(-1, -2) + prompt_kv.own_mask
        own = own_scores.view(rows * kv_heads, -1, count // probes)
        outputs, own_weights = [], []
        product = _product(prompt_kv.differentiated)
        for group, kept, hidden in prompt_kv.groups(layer):
            scores = product(by_head[group], partial(_keys, kept))
            num_past = scores.shape[-1]
            if hidden is not None:
                scores = scores.masked_fill(hidden, -torch.inf)
            weights = torch.softmax(torch.cat((scores, own[group]), dim=-1).float(), dim=-1).to(query.dtype)
            own_weights.append(weights[..., num_past:])
            outputs.append(product(weights[..., :num_past], partial(kept, 1)))
        own_output = torch.cat(own_weights).view(own_scores.shape) @ value.reshape(own_keys.shape)
        output = torch.cat(outputs).view(by_probe.shape) + own_output
        return output.view(rows, heads, count, size).transpose(1, 2), None


def check_plain(kwargs: Mapping[str, Any]) -> None:
    """Refuse more than attention among what a model hands to an attention function.

    Raises:
        TypeError: with the names.
    """
    if more := [name for name, value in kwargs.items() if value is not None and name not in _HARMLESS]:
        raise TypeError(f"attention with {', '.join(more)}")


def _product(differentiated: bool) -> Callable[[torch.Tensor, Callable[[], torch.Tensor]], torch.Tensor]:
    """left @ kept(), by the rule that the pass's derivatives need, if any."""
    if differentiated:
        return lambda left, kept: KeptProduct.apply(left, kept())
    if torch.is_grad_enabled():
        return RegatheredProduct.apply
    return lambda left, kept: torch.bmm(left, kept())


@contextmanager
def use_attention(model: PreTrainedModel, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """The model's passes compute attention by `function`, known to transformers as `name`."""
    before = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(name, function)
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def side_by_side(model: PreTrainedModel) -> AbstractContextManager[None]:
    """The model's passes take a `prompt_kv` and use `attention` with it."""
    return use_attention(model, SIDE_BY_SIDE, attention)


_HARMLESS = {  # what says nothing new of a pass that brings its own mask and positions, within the model's window
    "dropout", "is_causal", "sliding_window", "position_ids", "position_embeddings", "output_attentions", "use_cache",
    "output_router_logits",
}  # fmt: skip
