"""The scores of a batch before anything is computed: the counts that are known, and sums that are still zero."""

from collections.abc import Sequence

import numpy as np

from zotune.zo.protocol import Example


def empty_scores(num_probes: int, batch: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Token counts [example, candidate], and log-probabilities [probe, example, candidate]: 0, or -inf where absent."""
    num_tokens = np.zeros((len(batch), max(len(example.candidates) for example in batch)), dtype=np.int64)
    for index, example in enumerate(batch):
        num_tokens[index, : len(example.candidates)] = [len(candidate) for candidate in example.candidates]
    present = np.arange(num_tokens.shape[1]) < np.array([[len(example.candidates)] for example in batch])
    return num_tokens, np.where(present, 0.0, -np.inf).astype(np.float32)[None].repeat(num_probes, axis=0)
