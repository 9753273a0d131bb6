"""What attention looked at in a pass, and the same attention again for some of the pass's tokens.

A pass leaves the keys and values of all tokens behind. Attention of a few tokens is then computed again by the model's
own code, over those keys and values, in which the few have their places: so it can be differentiated, also by what
they are to each other, at the cost of the few. What other tokens are is held fixed.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from zotune.engine.torch.attention import SIDE_BY_SIDE, PromptKV, attention, padded

Function = Callable[..., Any]
"""An attention function of transformers' interface."""


@dataclass
class Look:
    """One call of an attention function.

    Args:
        layer: as the module numbers itself.
        places: the few tokens, of those that ask: rows, and their positions in them [rows, tokens].
        keys, values: [rows, kv heads, tokens, size], the last of them those of the tokens that ask.
        num_asking: how many tokens of a row ask.
        mask: what is added to scores, or which are let through [rows, 1, asking, tokens]; None: those before, or all.
        causal: whether without a mask tokens see those before them alone.
        prompt_kv: what comes before `keys` and `values`.
    """

    layer: int
    places: tuple[torch.Tensor, torch.Tensor]
    keys: torch.Tensor
    values: torch.Tensor
    num_asking: int
    mask: torch.Tensor | None
    causal: bool
    prompt_kv: PromptKV | None

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside, a model's attention is that of the few tokens alone, among all that was looked at."""
        with _in_place_of_all(lambda name: self._attend):
            yield

    def _attend(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, *args: Any,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        keys, values, mask = self._all(query.dtype if self.prompt_kv is None else self.keys.dtype)
        rows, positions = self.places
        own = rows, positions + keys.shape[2] - self.num_asking
        keys, values = (
            all_of.transpose(1, 2).index_put(own, few.transpose(1, 2).to(all_of.dtype)).transpose(1, 2)
            for all_of, few in ((keys, key), (values, value))
        )
        kwargs = {name: value for name, value in kwargs.items() if name not in ("prompt_kv", "is_causal")}
        return _eager(module)(module, query.to(keys.dtype), keys, values, mask, *args, **kwargs)

    def _all(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """All keys and values, and the mask of the few [rows, 1, few, tokens]."""
        rows, positions = self.places
        if self.prompt_kv is not None:
            return self._behind_prompts(self.prompt_kv)
        count = self.keys.shape[2]
        if self.mask is None:
            own = torch.arange(count, device=rows.device) - (count - self.num_asking)
            allowed = (own <= positions[..., None])[:, None]
            return self.keys, self.values, _additive(allowed | (not self.causal), dtype)
        mask = (
            self.mask.expand(len(positions), -1, self.num_asking, -1).transpose(1, 2)[rows, positions].transpose(1, 2)
        )
        return self.keys, self.values, _additive(mask, dtype) if mask.dtype == torch.bool else mask.to(dtype)

    def _behind_prompts(self, kv: PromptKV) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        own_mask = kv.own_mask[:, 0, :, 0].transpose(1, 2)[self.places].transpose(1, 2).to(self.keys.dtype)
        if not any(kv.prompts):
            return self.keys, self.values, own_mask
        (prompt_keys, prompt_values), hidden = padded([[run[self.layer] for run in runs] for runs in kv.prompts])
        of_prompts = _additive(~hidden.to(self.keys.device), self.keys.dtype)[:, None, None]
        mask = torch.cat((of_prompts.expand(-1, -1, own_mask.shape[2], -1), own_mask), dim=3)
        return torch.cat((prompt_keys, self.keys), dim=2), torch.cat((prompt_values, self.values), dim=2), mask


@contextmanager
def looking(
    note: Callable[[Look], None], places: Callable[[], tuple[torch.Tensor, torch.Tensor] | None], causal: bool
) -> Iterator[None]:
    """Inside, each call of an attention function is noted, where there are places of tokens to look at; `causal` as in
    `Look`."""

    def watched(name: str) -> Function:
        before = attention if name == SIDE_BY_SIDE else ALL_ATTENTION_FUNCTIONS.get(name)

        def function(
            module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, *args: Any,
            **kwargs: Any,
        ) -> Any:  # fmt: skip
            if (where := places()) is not None:
                prompt_kv = kwargs.get("prompt_kv")
                if prompt_kv is not None and prompt_kv.dtype is not None:
                    seen = (key.to(prompt_kv.dtype), value.to(prompt_kv.dtype))
                else:
                    seen = (key, value)
                layer = getattr(module, "layer_idx", 0)
                note(Look(int(layer), where, *seen, query.shape[2], mask, causal, prompt_kv))
            return (before or _eager(module))(module, query, key, value, mask, *args, **kwargs)

        return function

    with _in_place_of_all(watched):
        yield


@contextmanager
def _in_place_of_all(make: Callable[[str], Function]) -> Iterator[None]:
    """Inside, transformers' models compute attention by other functions, made from the names of theirs."""
    functions: Mapping[str, Function] = {name: make(name) for name in ("eager", "sdpa", SIDE_BY_SIDE)}
    for name, function in functions.items():
        ALL_ATTENTION_FUNCTIONS[name] = function
    try:
        yield
    finally:
        for name in functions:
            del ALL_ATTENTION_FUNCTIONS[name]


def _eager(module: nn.Module) -> Function:
    """Attention by the model's own code, with what it has beside attention, as a cap on scores."""
    function: Function = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    return function


def _additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)
