"""The language-model head, kept to the positions that are scored, and to so many logits at a time.

A hook in front of the head picks the positions. Where their logits would be more than `max_logits` numbers, the head is
applied piece by piece after the pass; models that do something to logits after the head (found by a trial) are left
to compute them in one piece.
"""

from functools import partial

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

MAX_LOGITS = 2**26


class ScoredHead:
    """The head of one model, from now until `remove`."""

    def __init__(self, model: PreTrainedModel, max_logits: int = MAX_LOGITS) -> None:
        self.max_logits = max_logits
        self.is_last = True  # nothing happens to logits after the head
        self._head = model.get_output_embeddings()
        self._vocabulary = model.config.get_text_config().vocab_size
        self._positions: torch.Tensor | None = None
        self._left: torch.Tensor | None = None  # inputs of the head, where it has yet to be applied
        self._hook = self._head.register_forward_pre_hook(self._pick)

    def takes(self, count: int) -> bool:
        """Whether so many positions may go into one pass."""
        return self.is_last or count * self._vocabulary <= self.max_logits

    def pick(self, positions: torch.Tensor | None) -> None:
        """In the next passes only `positions` [rows, scored] reach the head; None: all do."""
        self._positions = positions

    def log_probs(self, logits: torch.Tensor, places: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of `tokens` [n] at `places` [n], which number the picked positions row by row.

        Args:
            logits: what the pass gave.
        """
        left, self._left, self._positions = self._left, None, None
        if left is None:
            return _of_tokens(logits.flatten(0, 1), places, tokens)
        values, order = [], []
        size = max(1, self.max_logits // self._vocabulary)
        for start in range(0, len(left), size):
            (here,) = torch.where((places >= start) & (places < start + size))
            piece = partial(self._piece, left[start : start + size], places[here] - start, tokens[here])
            # A record of a pass would keep all logits: they are computed again on the way back.
            values.append(checkpoint(piece, use_reentrant=False) if torch.is_grad_enabled() else piece())
            order.append(here)
        return torch.cat(values)[torch.argsort(torch.cat(order))]

    def remove(self) -> None:
        self._hook.remove()

    def _piece(self, left: torch.Tensor, places: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return _of_tokens(self._head(left), places, tokens)

    def _pick(self, module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if self._positions is None:
            return None
        rows = torch.arange(len(self._positions), device=self._positions.device)[:, None]
        picked = args[0][rows, self._positions]  # [rows, scored, width]
        if self.is_last and picked.shape[0] * picked.shape[1] * self._vocabulary > self.max_logits:
            self._left = picked.flatten(0, 1)
            picked = picked[:1, :1]
        return (picked, *args[1:])


def _of_tokens(table: torch.Tensor, places: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of `tokens` [n] at rows `places` [n] of a table of logits."""
    normalizers = torch.logsumexp(table.float(), dim=-1)
    return table[places, tokens].float() - normalizers[places]
