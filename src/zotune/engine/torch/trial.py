"""The trial at the start: whether a model takes masks and caches from outside, and scores the same with them."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from zotune.engine.torch.everywhere import MIN_SHARED
from zotune.engine.torch.head import MAX_LOGITS, ScoredHead
from zotune.engine.torch.plain import PlainEngine
from zotune.zo.protocol import Example, Probe, Scores, Theta

Score = Callable[[Theta, Sequence[Probe], Sequence[Example]], Scores]


def why_plain(plain: PlainEngine, head: ScoredHead, score: Score) -> str | None:
    """Why this model must go through the plain engine, or None: both score a small batch and must agree.

    Args:
        score: the fast way, with nothing kept; afterwards `head` is set as this model wants it.
    """
    if any(module is plain.model.get_output_embeddings() for module in plain.layers.modules):
        return "the adapter is on the output layer"
    vocabulary = plain.model.config.get_text_config().vocab_size
    ids = tuple((7 * i + 3) % vocabulary for i in range(24))
    start = plain.spec.virtual_tokens[:MIN_SHARED] if plain.spec else ()  # few: the model's context may be short
    batch = [
        Example(start + ids[:17], ids[17:19], (ids[19:20], ids[20:23])),
        Example(start + ids[5:15], ids[17:19], (ids[19:20],)),
    ]
    theta, probes = plain.layers.trial()
    stats = vars(plain.stats).copy()
    # LLM.int8() rounds what goes into a product to 8 bits, where another order of operations may tip the scales.
    rounds = any(parameter.dtype == torch.int8 for parameter in plain.model.parameters())
    tolerance = 5e-2 if rounds or plain.model.dtype != torch.float32 else 1e-4
    try:
        slow = plain.score(theta, probes, batch).log_probs
        for pieces in (False, True):
            head.max_logits, head.is_last = 1, pieces
            fast = score(theta, probes, batch).log_probs
            agrees = np.allclose(np.nan_to_num(fast), np.nan_to_num(slow), rtol=tolerance, atol=tolerance)
            if not pieces and not agrees:
                return f"{type(plain.model).__name__} does not score the same with a mask and cache from outside"
        head.is_last = agrees
    except Exception as error:  # whatever a model's own code raises over arguments it does not know
        return f"{type(plain.model).__name__} does not take a mask and cache from outside ({error})"
    finally:
        vars(plain.stats).update(stats)
        plain.layers.active, head.max_logits = True, MAX_LOGITS
        head.pick(None)
    return None
