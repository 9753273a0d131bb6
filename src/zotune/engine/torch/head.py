"""The language-model head, kept to the positions that are scored, and computed in float32 where that is possible.

A hook in front of the head picks the positions, of masked models before all that their heads consist of, and nothing
goes through the last layer in the pass: it is applied after it, so many logits at a time. A half-precision logit of 15
is off by up to 0.03, more than a small step changes a loss; so a linear head multiplies in float32. Models that do
something to logits after the head (found by a trial) are left to compute them in the pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from zotune.engine.torch.model_kind import sees_all

MAX_LOGITS = 2**26
MAX_WEIGHTS = 2**20  # numbers of the head in float32 at once, on a CPU: what its caches hold


class ScoredHead:
    """The head of one model, from now until `remove`.

    Args:
        fixed: the head's weights are what they are, whatever theta is.
    """

    def __init__(self, model: PreTrainedModel, fixed: bool, max_logits: int = MAX_LOGITS) -> None:
        self.max_logits = max_logits
        self.is_last = True  # nothing happens to logits after the head
        self.normalized = True  # whether `log_probs` are that, or logits
        self._head = model.get_output_embeddings()
        self._linear = fixed and type(self._head) is nn.Linear and self._head.weight.is_floating_point()
        self._vocabulary = model.config.get_text_config().vocab_size
        self._positions: torch.Tensor | None = None
        self._left: torch.Tensor | None = None  # inputs of the head, which has yet to be applied
        self._hooks: list[Any] = [self._head.register_forward_pre_hook(self._pick)]
        self._early = sees_all(model)
        if self._early:
            self._hooks.append(model.base_model.register_forward_hook(self._pick_states))

    def takes(self, count: int) -> bool:
        """Whether so many positions may go into one pass."""
        return self.is_last or count * self._vocabulary <= self.max_logits

    def pick(self, positions: torch.Tensor | None) -> None:
        """In the next passes only `positions` [rows, scored] reach the head; None: all do."""
        self._positions = positions

    @contextmanager
    def in_pass(self) -> Iterator[None]:
        """Inside, a pass applies the head to what was picked, in its own precision, and gives logits."""
        before, self.is_last = self.is_last, False
        try:
            yield
        finally:
            self.is_last = before

    def picked(self) -> torch.Tensor:
        """The positions that reach the head in the pass that runs."""
        assert self._positions is not None
        return self._positions

    def log_probs(self, logits: torch.Tensor, places: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of `tokens` [n] at `places` [n], which number the picked positions row by row, in float32.

        Args:
            logits: what the pass gave.
        """
        left, self._left, self._positions = self._left, None, None
        if left is None:
            return _of_tokens(logits.flatten(0, 1), places, tokens)
        if self._linear and not self.normalized:
            return self._logits(left, places, tokens)
        values, order = [], []
        size = max(1, self.max_logits // self._vocabulary)
        for start in range(0, len(left), size):
            (here,) = torch.where((places >= start) & (places < start + size))
            work = self._in_float32 if self._linear else self._as_it_is
            piece = partial(work, left[start : start + size], places[here] - start, tokens[here])
            # A record of a pass would keep all logits: they are computed again on the way back.
            values.append(checkpoint(piece, use_reentrant=False) if torch.is_grad_enabled() else piece())
            order.append(here)
        return torch.cat(values)[torch.argsort(torch.cat(order))]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _in_float32(self, left: torch.Tensor, places: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        normalizers = []
        for some in torch.arange(len(self._head.weight), device=left.device).split(self._rows(left)):
            part = slice(int(some[0]), int(some[-1]) + 1)
            bias = None if self._head.bias is None else self._head.bias[part].float()
            logits = nn.functional.linear(left.float(), self._head.weight[part].float(), bias)
            normalizers.append(torch.logsumexp(logits, dim=-1))
        return self._logits(left, places, tokens) - torch.logsumexp(torch.stack(normalizers), dim=0)[places]

    def _logits(self, left: torch.Tensor, places: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        values = []
        for some in torch.arange(len(tokens), device=left.device).split(self._rows(left)):
            weight = self._head.weight[tokens[some]].float()
            values.append((left[places[some]].float() * weight).sum(dim=-1))
        logits = torch.cat(values)
        return logits if self._head.bias is None else logits + self._head.bias[tokens].float()

    def _rows(self, left: torch.Tensor) -> int:
        """How many of the head's weights, by rows, are held in float32 at once."""
        return max(1, (MAX_WEIGHTS if left.device.type == "cpu" else 64 * MAX_WEIGHTS) // left.shape[-1])

    def _as_it_is(self, left: torch.Tensor, places: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return _of_tokens(self._head(left), places, tokens)

    def _pick(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if self._positions is None:
            return None
        picked = args[0] if self._early else self._picked(args[0])
        if self.is_last:
            self._left = picked.flatten(0, 1)
            picked = picked[:, :0]
        return (picked, *args[1:])

    def _pick_states(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self._positions is None:
            return output
        if isinstance(output, tuple):
            return (self._picked(output[0]), *output[1:])
        output.last_hidden_state = self._picked(output.last_hidden_state)
        return output

    def _picked(self, states: torch.Tensor) -> torch.Tensor:
        """[rows, scored, width]"""
        assert self._positions is not None
        return states[torch.arange(len(states), device=states.device)[:, None], self._positions]


class ClassifierHead(ScoredHead):
    """The logits of a classifier, one row for each text, as its own head computes them."""

    def __init__(self) -> None:
        self.max_logits, self.is_last, self.normalized = MAX_LOGITS, True, True
        self._positions: torch.Tensor | None = None
        self._hooks = []

    def takes(self, count: int) -> bool:
        return True

    def log_probs(self, logits: torch.Tensor, places: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return _of_tokens(logits, places, tokens)


def _of_tokens(table: torch.Tensor, places: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of `tokens` [n] at rows `places` [n] of a table of logits."""
    normalizers = torch.logsumexp(table.float(), dim=-1)
    return table[places, tokens].float() - normalizers[places]
