"""Passes over suffixes: which examples go through the model together, and what comes out at the scored positions.

How the suffixes' tokens lie in a pass, and what they see before them, is up to the scope: `activated.py` and
`everywhere.py`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.profiler import record_function
from transformers import PreTrainedModel

from zotune.engine.scores import empty_scores
from zotune.engine.torch.float_stream import FloatStream
from zotune.engine.torch.head import ScoredHead
from zotune.engine.torch.layers import TrainedLayers
from zotune.engine.torch.precision import is_half
from zotune.engine.torch.shared_kv import SharedKV, cache_name
from zotune.engine.torch.suffix import Suffix
from zotune.zo.protocol import EngineStats, Example, Scores


class SuffixPasses:
    """One model, what is trained in it, and the budgets of a pass.

    Args:
        max_tokens: a pass computes at most this many tokens, unless one example alone has more.
    """

    def __init__(
        self, model: PreTrainedModel, layers: TrainedLayers, head: ScoredHead, stats: EngineStats, max_tokens: int
    ) -> None:
        self.model = model
        self.dtype = model.dtype  # of the products of a pass
        self.stream = FloatStream(model, possible=is_half(model))
        self.cache_name = cache_name(model)
        self.layers = layers
        self.head = head
        self.stats = stats
        self.max_tokens = max_tokens

    def chunks(self, order: list[int], suffixes: list[Suffix], num_probes: int) -> Iterator[list[int]]:
        """Examples of like length together, as many as the budgets of tokens and of logits allow."""
        chunk: list[int] = []
        size = scored = 0
        for i in order:
            size, scored = max(size, len(suffixes[i].tokens)), max(scored, len(suffixes[i].scored))
            rows = (len(chunk) + 1) * num_probes
            if chunk and (rows * size > self.max_tokens or not self.head.takes(rows * scored)):
                yield chunk
                chunk, size, scored = [], len(suffixes[i].tokens), len(suffixes[i].scored)
            chunk.append(i)
        yield chunk

    def scored(self, rows: list[int], suffixes: list[Suffix]) -> np.ndarray:
        """Scored nodes of each row, filled with the first: [rows, scored]."""
        scored = np.zeros((len(rows), max(len(suffixes[i].scored) for i in rows)), dtype=np.int64)
        for row, i in enumerate(rows):
            scored[row] = suffixes[i].scored[0]
            scored[row, : len(suffixes[i].scored)] = suffixes[i].scored
        return scored

    def forward(
        self,
        input_ids: np.ndarray,
        positions: np.ndarray | None,
        scored: np.ndarray,
        float_stream: bool = False,
        token_mask: torch.Tensor | None = None,
        kept: SharedKV | None = None,
        **more: Any,
    ) -> torch.Tensor:
        """One pass; logits at the scored positions [rows, scored], as `ScoredHead.log_probs` takes them.

        Args:
            positions: None: the model's own, of a masked one.
            kept: keys and values before those of the pass, in the form of transformers' cache.
        """
        self.layers.token_mask = token_mask
        self.head.pick(self._tensor(scored))
        self.layers.float_stream = wide = float_stream and self.stream.possible and self.dtype == self.model.dtype
        try:
            with record_function("zotune::forward"), self.stream.in_use(wide):
                if positions is not None:
                    more |= {"position_ids": self._tensor(positions), "use_cache": kept is not None}
                if kept is not None:
                    more[self.cache_name] = kept
                logits = self.model(input_ids=self._tensor(input_ids), **more).logits
        finally:
            self.layers.float_stream = False
            self.head.pick(None)
        self.stats.forward_passes += 1
        return logits

    def log_probs(
        self, logits: torch.Tensor, places: np.ndarray, rows: list[int], suffixes: list[Suffix]
    ) -> torch.Tensor:
        """The log-probabilities of the candidates' tokens [probe, target].

        Args:
            places: [probes, rows, scored], where the head has the logits of a scored node.
        """
        targets = np.array([(row, node, token) for row, i in enumerate(rows) for _, node, token in suffixes[i].targets])
        row, node, token = targets.T
        at = places[:, row, node]  # [probes, targets]
        values = self.head.log_probs(logits, self._tensor(at.ravel()), self._tensor(np.tile(token, len(places))))
        return values.view(at.shape)

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(self.model.device)


def add_values(values: torch.Tensor, rows: list[int], suffixes: list[Suffix], scores: np.ndarray) -> None:
    """Add values [probe, target] of the candidates' tokens to scores [probe, example, candidate]."""
    examples = np.array([(i, c) for i in rows for c, _, _ in suffixes[i].targets])
    for probe_values, probe_scores in zip(values.cpu().numpy(), scores, strict=True):
        np.add.at(probe_scores, (examples[:, 0], examples[:, 1]), probe_values)


def scores_of(rows: list[int], suffixes: list[Suffix], batch: Sequence[Example], values: torch.Tensor) -> Scores:
    """The scores of a batch, from the log-probabilities [target] of one pass."""
    num_tokens, log_probs = empty_scores(1, batch)
    add_values(values[None], rows, suffixes, log_probs)
    return Scores(log_probs, num_tokens)


def tokens_needed(batch: Sequence[Example]) -> int:
    """What the plain engine would compute for one probe: every row whole."""
    return sum(
        len(example.prompt) + len(example.invocation) + len(start)
        for example in batch
        for start in {candidate[:-1] for candidate in example.candidates}
    )
