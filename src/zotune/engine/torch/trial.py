"""The trial at the start: a small batch with everything in it that may go wrong, scored in two ways that must agree.

The reference is one row at a time, as transformers' own forward pass computes it without padding, mask or cache. The
plain engine's padded rows are held to it, and the fast engine to the plain one. The examples begin alike for longer
than a prefix must be to be shared, differ in length, and have candidates of one token and others that branch later.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel

from zotune.adapter.spec import AdapterSpec
from zotune.engine.torch.everywhere import MIN_SHARED
from zotune.engine.torch.layers import TrainedLayers
from zotune.engine.torch.model_kind import is_classifier, sees_all
from zotune.engine.torch.precision import in_float32, is_half
from zotune.zo.protocol import Example, Probe, Scores, Theta, TokenIds

BLOCK = 12  # tokens of a block of the prefix cache: the longer prompt is two
KEPT_BYTES = 1e9  # of prompts, during the trial
LONGER = 12  # tokens past a limit of the model's (`limits.py`) that a trial goes
TIMES_DRAWN = 8  # as often a model that draws random numbers is asked again: it may say the same twice by chance
MOST_TRIED = 256  # tokens: beyond a later limit, a trial would take longer than what it may save


@dataclass(frozen=True)
class Trial:
    theta: Theta
    probes: list[Probe]
    batch: list[Example]

    @classmethod
    def of(cls, model: PreTrainedModel, layers: TrainedLayers, spec: AdapterSpec | None) -> "Trial":
        return cls(*layers.trial(), _batch(model, spec.virtual_tokens if spec else ()))

    def longer(self, limit: int) -> list[Example]:
        """The examples with more tokens than `limit`, and one with fewer."""
        filling = self.batch[0].prompt[-MIN_SHARED:] * (limit // MIN_SHARED + 2)
        long = [
            replace(example, prompt=(example.prompt + filling)[: limit + more])
            for example, more in zip(self.batch, (LONGER - 4, 2), strict=True)
        ]
        return [*long, self.batch[1]]


def _batch(model: PreTrainedModel, virtual_tokens: TokenIds) -> list[Example]:
    """Examples of at most 32 tokens: the model's context may be short."""
    vocabulary = model.config.get_text_config().vocab_size
    masked = sees_all(model)
    ids = tuple((7 * i + 3) % vocabulary for i in range(31))
    start, invocation = virtual_tokens[:MIN_SHARED] + ids[: MIN_SHARED + 1], ids[17:19]
    if masked:
        words = tuple((token,) for token in ((0, 1) if is_classifier(model) else ids[27:31]))
        return [
            Example(start + ids[9:17], (), words, mask_at=len(start)),
            Example(start + ids[25:27], (), words[:2], mask_at=len(start) - 1),
        ]
    branching = (ids[19:20], ids[20:23], (*ids[20:21], *ids[23:25]))
    return [
        Example(start + ids[9:17], invocation, branching),
        Example(start + ids[25:27], invocation, tuple((token,) for token in ids[27:31])),
    ]


def generator_state(device: torch.device) -> torch.Tensor:
    """Of PyTorch's generator of random numbers there: it changes when a model draws."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def agree(
    model: PreTrainedModel,
    scores: Scores,
    reference: Scores,
    noise: float = 0.0,
    exact: bool = False,
    spread: float | None = None,
) -> bool:
    """Whether two ways of computing the scores of a trial are the same but for rounding.

    Args:
        noise: how far two right ways are apart on this model, as `distance` has it, where that is known.
        exact: the way is the same, and so must the numbers be.
        spread: how far scores of unlike texts are apart; None: as far as these are.
    """
    # LLM.int8() rounds what goes into a product to 8 bits, where another order of operations may tip the scales.
    rounds = any(parameter.dtype == torch.int8 for parameter in model.parameters())
    got, want = _present(scores), _present(reference)
    if exact:
        return np.array_equal(got, want, equal_nan=True)
    if not np.isfinite(want).all():  # no number to be held to; who trains or evaluates is told so
        return np.array_equal(np.isfinite(got), np.isfinite(want))
    if model.dtype == torch.float32 and not rounds:
        return same(scores, reference)
    return distance(scores, reference) <= max(3 * noise, 0.05 * (float(np.std(want)) if spread is None else spread))


def same(scores: Scores, reference: Scores) -> bool:
    """In float32."""
    return np.allclose(_present(scores), _present(reference), rtol=1e-4, atol=1e-4)


def distance(scores: Scores, reference: Scores) -> float:
    """The root of the mean squared difference, in nats."""
    return float(np.sqrt(np.mean((_present(scores) - _present(reference)) ** 2)))


@torch.inference_mode()
def sees_later_tokens(model: PreTrainedModel, layers: TrainedLayers, tokens: TokenIds, first: int) -> bool:
    """Whether what the base model says at the first tokens, so many or more, changes with those behind them."""
    counts = sorted({first + (len(tokens) - 1 - first) * part // 4 for part in range(4)})
    rows = [tokens, *(tokens[:count] for count in counts)]
    layers.active, layers.num_groups = False, 1
    try:
        whole, *parts = _logits(model, rows)
    finally:
        layers.active = True
    if not all(bool(logits.isfinite().all()) for logits in (whole, *parts)):
        return False  # nothing can be told; whoever asks for scores finds that they are no numbers
    tolerance = (1e-5 if whole.dtype == torch.float32 else 0.1) * float(whole.abs().max())
    return any(not torch.allclose(whole[: len(part)], part, rtol=0, atol=tolerance) for part in parts)


def _logits(model: PreTrainedModel, rows: list[TokenIds]) -> list[torch.Tensor]:
    """Of each row alone, in float32 where the model can compute so."""

    def compute() -> list[torch.Tensor]:
        given = (torch.tensor([ids], device=model.device) for ids in rows)
        return [model(input_ids=input_ids, use_cache=False).logits[0] for input_ids in given]

    if is_half(model):
        try:
            with in_float32(model):
                return compute()
        except Exception:  # whatever a model's own code raises over a dtype that it does not expect
            pass
    return compute()


def _present(scores: Scores) -> np.ndarray:
    values = scores.log_probs if scores.tangents is None else np.stack([scores.log_probs, scores.tangents])
    return values[..., scores.num_tokens > 0].astype(np.float64)
