"""What SGLang's passes leave behind at the tokens that the way back of the lens takes (`lens_gradient.py`).

Of each block that is the residual state before attention and before the feed-forward part, and the keys and values that
attention looked at; and the last residual state. All of it is read where it passes by: at norms, which SGLang calls as
modules, whatever kernels it has inside, and in its pool.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from zotune.engine.sglang.jobs import VisitedTokens


@dataclass(frozen=True)
class Form:
    """Where an architecture has what the way back needs: names within the model, and within a block.

    All of these add what attention gives, and then what the feed-forward part gives, to the residual state, and take
    a norm of the state before each.
    """

    blocks: str
    last_norm: str
    attention_norm: str
    attention: str
    attention_output: str
    feed_norm: str
    up: str
    activation: str
    down: str


_GATED = Form(
    "model.layers", "model.norm", "input_layernorm", "self_attn", "self_attn.o_proj", "post_attention_layernorm",
    "mlp.gate_up_proj", "mlp.act_fn", "mlp.down_proj",
)  # fmt: skip
FORMS = {
    "OPTForCausalLM": Form(
        "model.decoder.layers", "model.decoder.final_layer_norm", "self_attn_layer_norm", "self_attn",
        "self_attn.out_proj", "final_layer_norm", "fc1", "activation_fn", "fc2",
    ),
    "LlamaForCausalLM": _GATED,
    "Qwen2ForCausalLM": _GATED,
    "Qwen3ForCausalLM": _GATED,
}  # fmt: skip


@dataclass
class Seen:
    """Of one batch that SGLang ran, a row for each job with such tokens, filled up with its first.

    Args:
        rows: the tokens of each job.
        positions: in the jobs' tokens [rows, tokens].
        before_attention, before_feed: by block, residual states [rows * tokens, width].
        kv: by block, keys and values of all tokens of the jobs [rows, longest, kv heads, size].
        last: the last residual states [rows * tokens, width].
    """

    rows: list[VisitedTokens]
    positions: torch.Tensor
    before_attention: dict[int, torch.Tensor] = field(default_factory=dict)
    before_feed: dict[int, torch.Tensor] = field(default_factory=dict)
    kv: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    last: torch.Tensor | None = None

    @property
    def filling(self) -> torch.Tensor:
        """Bool [rows * tokens, 1]."""
        counts = torch.tensor([len(row.positions) for row in self.rows], device=self.positions.device)
        number = torch.arange(self.positions.shape[1], device=self.positions.device)
        return (number >= counts[:, None]).view(-1, 1)


class Watch:
    """Sees what passes do.

    Args:
        blocks: SGLang's.
        runner: SGLang's, which has the pool.
    """

    def __init__(self, form: Form, blocks: Sequence[Any], last_norm: nn.Module, runner: Any) -> None:
        self.form, self.blocks, self.last_norm, self.runner = form, blocks, last_norm, runner
        self.seen: list[Seen] = []
        self._index: torch.Tensor | None = None  # of them among the tokens of the pass that runs, if any
        self._places = torch.empty(0)  # of their jobs' keys and values in the pool [rows, longest]

    @contextmanager
    def open(self) -> Iterator[None]:
        self.seen, form = [], self.form
        hooks = [self.last_norm.register_forward_hook(self._last)]
        for index, block in enumerate(self.blocks):
            for name, note in (
                (form.attention_norm, self._before_attention), (form.attention, self._attention),
                (form.feed_norm, self._before_feed),
            ):  # fmt: skip
                hooks.append(block.get_submodule(name).register_forward_hook(partial(note, index)))
        try:
            yield
        finally:
            self._index = None
            for hook in hooks:
                hook.remove()

    def begin(self, found: Sequence[VisitedTokens]) -> None:
        """What the next pass computes; without an adapter there is nothing to learn."""
        rows = [row for row in found if row.job.slot is not None]
        self._index = None
        if not rows:
            return
        width, device = max(len(row.indices) for row in rows), self.runner.device
        filled = [
            [numbers + numbers[:1] * (width - len(numbers)) for numbers in (row.indices, row.positions)] for row in rows
        ]
        index, positions = torch.tensor(filled, device=device).unbind(dim=1)
        self._index = index.flatten()
        self._places = torch.nn.utils.rnn.pad_sequence([row.kv.long() for row in rows], batch_first=True)
        self.seen.append(Seen(rows, positions))

    def _before_attention(self, block: int, norm: nn.Module, args: Any, output: Any) -> None:
        if self._index is not None:
            self.seen[-1].before_attention[block] = _state(args, output)[self._index]

    def _before_feed(self, block: int, norm: nn.Module, args: Any, output: Any) -> None:
        if self._index is not None:
            self.seen[-1].before_feed[block] = _state(args, output)[self._index]

    def _last(self, norm: nn.Module, args: Any, output: Any) -> None:
        if self._index is not None:
            self.seen[-1].last = _state(args, output)[self._index]

    def _attention(self, block: int, module: Any, args: Any, output: Any) -> None:
        if self._index is not None:
            keys, values = self.runner.token_to_kv_pool.get_kv_buffer(module.attn.layer_id)
            self.seen[-1].kv[block] = keys[self._places], values[self._places]


def _state(args: Any, output: Any) -> torch.Tensor:
    """The residual state at a norm: a norm that adds a summand to the state gives the sum beside its own output."""
    state: torch.Tensor = output[1] if isinstance(output, tuple) else args[0]
    return state
