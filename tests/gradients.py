"""What the tests of gradients share: a batch, cotangents, and log-probabilities written out with a graph."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from tests.conftest import TARGETS, make_model
from zotune.adapter.spec import LoraSpec
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.plain import PlainEngine
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.zo.protocol import Example, Scores, Theta

INVOCATION = (50, 51)
SCOPES = {"activated": INVOCATION, "everywhere": None}
FORMS = ("lora", "lora_fa", "vera")
# Of the largest number of a tensor: fp32 sums in another order of operations.
TOLERANCE = 1e-5
BATCH = [
    Example((2, 3, 4, 5, 6), INVOCATION, ((60,), (61,)), 0),
    Example((2, 3, 4, 9), INVOCATION, ((60, 61), (60, 62), (63,)), 2),
    Example((7,), INVOCATION, ((60, 61, 64), (62, 61)), 1),
]
ENGINES: dict[str, Any] = {
    "plain": PlainEngine,
    "torch": lambda model, spec: TorchEngine(model, spec, PrefixCache(1e8)),
}


def make_spec(kind: str = "opt", scope: str = "activated", form: str = "lora") -> LoraSpec:
    return LoraSpec(4, 8.0, TARGETS[kind], SCOPES[scope], peft_type=form)


def make_fast(kind: str = "opt", scope: str = "activated", form: str = "lora", cache=None, **options) -> TorchEngine:
    return TorchEngine(make_model(kind), make_spec(kind, scope, form), cache or PrefixCache(1e8), **options)


def array(tensor: torch.Tensor | None) -> np.ndarray:
    assert tensor is not None
    values: np.ndarray = tensor.numpy()
    return values


def mean_loss(log_probs: torch.Tensor, counts: torch.Tensor, labels: list[int | None]) -> torch.Tensor:
    """Cross entropy over the candidates' mean token log-probabilities."""
    logits = torch.where(counts > 0, log_probs / counts.clamp(min=1), -torch.inf)
    return torch.nn.functional.cross_entropy(logits, torch.tensor(labels))


def cotangents(batch: list[Example]) -> Callable[[Scores], np.ndarray]:
    """How the mean loss changes with each log-probability, by autograd in float64."""

    def of(scores: Scores) -> np.ndarray:
        log_probs = torch.tensor(scores.log_probs[0], dtype=torch.float64)
        leaf = torch.where(log_probs.isfinite(), log_probs, 0.0).requires_grad_()
        mean_loss(leaf, torch.tensor(scores.num_tokens), [e.label for e in batch]).backward()
        return array(leaf.grad)

    return of


def drawn(seed: int) -> Callable[[Scores], np.ndarray]:
    """Any cotangents, 0 where a candidate is absent."""
    return lambda scores: np.random.default_rng(seed).normal(size=scores.num_tokens.shape) * (scores.num_tokens > 0)


def assert_close(gradient: Theta, expected: Theta, tolerance: float = TOLERANCE) -> None:
    assert list(gradient) == list(expected)
    for name, value in expected.items():
        assert gradient[name].dtype == np.float32
        assert gradient[name].shape == value.shape
        np.testing.assert_allclose(gradient[name], value, rtol=0, atol=tolerance * np.abs(value).max(), err_msg=name)


def flat(gradient: Theta) -> np.ndarray:
    return np.concatenate([value.ravel() for value in gradient.values()]).astype(np.float64)


def assert_close_to_terms(gradient: Theta, expected: Theta, terms: list[Theta]) -> None:
    """Within fp32's error of the terms, one for each example: those of opposite signs may leave next to nothing."""
    assert list(gradient) == list(expected)
    error = np.linalg.norm(flat(gradient) - flat(expected))
    assert error <= TOLERANCE * sum(np.linalg.norm(flat(term)) for term in terms)


def terms_of(engine: PlainEngine, theta: Theta, batch: list[Example], seed: int) -> list[Theta]:
    """What each example adds to the gradient of a batch."""

    def only(index: int, scores: Scores) -> np.ndarray:
        return drawn(seed)(scores) * (np.arange(len(batch)) == index)[:, None]

    return [engine.gradient(theta, batch, partial(only, index))[1] for index in range(len(batch))]


def bits(gradient: Theta) -> bytes:
    return b"".join(value.tobytes() for value in gradient.values())


def candidates_log_probs(model: torch.nn.Module, batch: list[Example], embed: Any = None) -> torch.Tensor:
    """Log-probabilities [example, candidate] of whole sequences, one row at a time, full logits; with a graph."""
    rows = []
    for example in batch:
        row = [torch.zeros(())] * max(len(e.candidates) for e in batch)
        for c, candidate in enumerate(example.candidates):
            ids = example.prompt + example.invocation + candidate
            inputs = {"input_ids": torch.tensor([ids])} if embed is None else {"inputs_embeds": embed(ids)}
            logits = model(**inputs).logits[0].float().log_softmax(-1)
            first = len(ids) - len(candidate)
            row[c] = torch.stack([logits[at - 1, ids[at]] for at in range(first, len(ids))]).sum()
        rows.append(torch.stack(row))
    return torch.stack(rows)


def counts_of(batch: list[Example]) -> torch.Tensor:
    width = max(len(e.candidates) for e in batch)
    return torch.tensor([[*map(len, e.candidates), *[0] * (width - len(e.candidates))] for e in batch])
