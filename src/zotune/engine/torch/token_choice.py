"""Which token comes next: the most likely one, or one drawn by noise that is a function of (row seed, place).

Gumbel-max: the largest of log-probability + Gumbel noise is a sample. Rows that differ a little in what they find
likely then mostly draw the same token from the same noise. Before that, temperature and the nucleus (top-p, Holtzman et
al., 2020, arXiv 1904.09751), of which tokens that are as likely as its last one are part. All engines choose by this.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from zotune.zo.draws import gumbel
from zotune.zo.protocol import Sampling

AT_ONCE = 2**19  # scores that are computed at once on a CPU
NUCLEUS = 64  # tokens that a nucleus is looked for in first


class TokenChoice:
    """The choices of one call.

    Args:
        seeds: of each prompt of the call.
        max_kept_bytes: of noise that is kept where rows come to a place at different times.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int], max_kept_bytes: int = 0) -> None:
        self.sampling = sampling
        self.seeds = np.array(seeds, dtype=np.int64)
        self._max_kept_bytes = max_kept_bytes
        self._kept: OrderedDict[tuple[int, int], torch.Tensor] = OrderedDict()  # by seed and place, the last used last

    def scores(self, logits: torch.Tensor, prompts: np.ndarray, place: int | np.ndarray) -> torch.Tensor:
        """What the chosen token has most of, [rows, vocabulary].

        Args:
            logits: of the next token, [rows, vocabulary].
            prompts: which prompt each row goes on with.
            place: how many tokens the rows have been given already: one number for all, or one each.

        Raises:
            FloatingPointError: logits that are no numbers: they would give token 0, whatever the text.
        """
        return torch.cat(list(self._pieces(logits, prompts, place)))

    def tokens(
        self, logits: torch.Tensor, probes: np.ndarray, prompts: np.ndarray, place: int | np.ndarray
    ) -> np.ndarray:
        """The next token of each row; the noise is the same for all probes."""
        # Of bfloat16 on a CPU, argmax takes four times as long.
        chosen = [scores.max(dim=-1).indices for scores in self._pieces(logits, prompts, place)]
        return torch.cat(chosen).cpu().numpy()

    def _pieces(self, logits: torch.Tensor, prompts: np.ndarray, place: int | np.ndarray) -> Iterator[torch.Tensor]:
        """The scores of some rows after the other: of a CPU's caches' size."""
        if self.sampling.temperature > 0.0:
            seeds = self.seeds[prompts]
            keys = list(zip(seeds.tolist(), np.broadcast_to(place, seeds.shape).tolist(), strict=True))
            noise = {key: self._noise(*key, logits) for key in dict.fromkeys(keys)}
        size = max(1, AT_ONCE // logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
        for start in range(0, len(logits), size):
            some = logits[start : start + size]
            # A token that may not come has minus infinity; NaN wins where there is one.
            if not bool(torch.isfinite(some.amax(dim=-1)).all()):
                raise FloatingPointError("the model's logits are no numbers")
            if self.sampling.temperature > 0.0:
                some = some.float() / self.sampling.temperature
                if self.sampling.top_p < 1.0:
                    least = _least_likely(some, self.sampling.top_p)
                    some = some.masked_fill(some < least[:, None], -torch.inf)
                some = some + torch.stack([noise[key] for key in keys[start : start + size]])
            yield some

    def _noise(self, seed: int, place: int, logits: torch.Tensor) -> torch.Tensor:
        """Float32 [vocabulary]: drawn once where it is kept."""
        noise = self._kept.pop((seed, place), None)
        if noise is None:
            noise = torch.from_numpy(gumbel(seed, f"token/{place}", logits.shape[-1])).to(logits.device)
        if noise.nbytes <= self._max_kept_bytes:
            while noise.nbytes * (len(self._kept) + 1) > self._max_kept_bytes:
                self._kept.popitem(last=False)
            self._kept[seed, place] = noise
        return noise


def _least_likely(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """The logit of the last token of each row's nucleus: so many of the most likely that they have `top_p` together."""
    normalizers = torch.logsumexp(logits, dim=-1, keepdim=True)
    least = logits.new_empty(len(logits))
    rows, size = torch.arange(len(logits), device=logits.device), NUCLEUS
    while len(rows):
        size = min(size, logits.shape[-1])
        values = logits[rows].topk(size).values
        reached = (values - normalizers[rows]).exp().cumsum(dim=-1) >= top_p
        reached[:, -1] |= size == logits.shape[-1]
        found = reached[:, -1]
        least[rows[found]] = values[found].gather(1, reached[found].int().argmax(dim=-1, keepdim=True))[:, 0]
        rows, size = rows[~found], 16 * size
    return least
