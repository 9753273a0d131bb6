"""Scores with their derivatives along directions, in one pass with the trunk that all directions share.

In scope everywhere the trunk is the whole prompt, behind nothing: its derivatives are wanted too.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from zotune.engine.scores import empty_scores
from zotune.engine.torch.activated import Activated, by_length
from zotune.engine.torch.forward_mode import differentiable, values_and_tangents
from zotune.engine.torch.lora import LoraLayers
from zotune.engine.torch.suffix import make_suffix
from zotune.engine.torch.suffix_passes import add_values, tokens_needed
from zotune.zo.protocol import Example, Probe, Scores, Theta


def score_with_tangents(
    activated: Activated, everywhere: bool, theta: Theta, probes: Sequence[Probe], batch: Sequence[Example]
) -> Scores:
    """One pass gives theta's scores and all their derivatives; in scope everywhere the prompts' too.

    A prompt under an activated adapter does not change with theta: its KV is the cache's.
    """
    passes = activated.passes
    num_tokens, log_probs = empty_scores(len(probes), batch)
    tangents, before = np.zeros_like(log_probs), passes.stats.tokens_computed
    prompts = [() if everywhere else example.prompt for example in batch]
    trunks = [example.prompt + example.invocation if everywhere else example.invocation for example in batch]
    suffixes = [make_suffix(trunk, e.candidates) for trunk, e in zip(trunks, batch, strict=True)]
    most = max(1, passes.max_tokens // max(len(suffix.tokens) for suffix in suffixes) - 1)
    for start in range(0, len(probes), most):
        some = slice(start, start + most)
        count = 1 + len(probes[some])
        for rows in passes.chunks(by_length(batch, suffixes), suffixes, count):
            kept = [[] for _ in rows] if everywhere else activated.prompts.kv([prompts[i] for i in rows])
            compute = partial(activated.log_probs, [prompts[i] for i in rows], kept, rows, suffixes, 1, True)
            assert isinstance(passes.layers, LoraLayers)
            with differentiable(passes.model, attention=False):
                values, moved = values_and_tangents(passes.layers, theta, probes[some], compute)
            passes.stats.tokens_computed += count * sum(len(suffixes[i].tokens) for i in rows)
            add_values(values.expand(count - 1, -1), rows, suffixes, log_probs[some])
            add_values(moved[:, 0], rows, suffixes, tangents[some])
            activated.prompts.cache.trim()
        passes.stats.tokens_reused += tokens_needed(batch) * count
    passes.stats.tokens_reused -= passes.stats.tokens_computed - before
    return Scores(log_probs, num_tokens, tangents)
