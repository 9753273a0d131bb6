"""LoRA's A from the data: the principal components of what goes into each adapted module.

EVA (Paischer et al., 2024, arXiv 2410.07170), without its shifting of ranks between modules. A row of A then reads what
differs most between the tokens that the adapter acts on, and a random change of B moves the output by more of it:
to directions drawn at random that matters most. It takes forward passes alone, whose prompts an engine keeps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn

from zotune.adapter.forms import initial_theta
from zotune.adapter.spec import LoraSpec, tensor_name
from zotune.adapter.start import Start
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.layers import TrainedLayers
from zotune.engine.torch.loading import context_length
from zotune.engine.torch.lora import LoraLayers
from zotune.engine.torch.plain import PlainEngine
from zotune.zo.protocol import AT_THETA, Engine, Example, Sampling, Theta, TokenIds

STARTED = "A starts from the principal components of each layer's inputs: %.1f s"  # what the log says
NUM_EXAMPLES = 64
BATCH_SIZE = 64
MAX_TOKENS = 1024  # of each module, of all passes together
NUM_WRITTEN = 32  # tokens of an answer that the model is asked for


def principal_components(
    engine: TorchEngine | PlainEngine, examples: Sequence[Example], seed: int, batch_size: int = BATCH_SIZE
) -> Start:
    """A [rank, inputs] of each adapted module: the first principal components, as orthonormal rows, of its inputs in
    the base model at the tokens that the adapter acts on, of NUM_EXAMPLES examples, evenly taken, a batch at a time.

    Where there are fewer components than the rank, the other rows are drawn from `seed`, as A is elsewhere. Examples
    without candidates are prompts alone, and what the base model goes on with there stands in for them.

    Args:
        engine: one of an adapter that starts at the base model, as LoRA does without a start.

    Raises:
        FloatingPointError: a module's inputs are not finite.
    """
    examples = some_of(examples)
    if isinstance(engine, TorchEngine) and engine.scope == "everywhere":  # whose rows are whole
        engine = engine.plain
    layers, spec = engine.layers, engine.spec
    assert isinstance(layers, LoraLayers)
    assert isinstance(spec, LoraSpec)
    theta = initial_theta(engine.tensor_shapes, seed)
    if not any(map(len, examples[0].candidates)):
        ends = engine.model.generation_config.eos_token_id
        examples = answered(engine, theta, examples, context_length(engine.model.config), stop_tokens(ends))
    inputs = _Inputs(layers, tokens_a_pass=MAX_TOKENS // -(-len(examples) // batch_size))
    modules = layers.modules
    hooks = [module.register_forward_pre_hook(partial(inputs.observe, name)) for name, module in modules.items()]
    try:
        for first in range(0, len(examples), batch_size):
            engine.score(theta, [AT_THETA], examples[first : first + batch_size])
    finally:
        for hook in hooks:
            hook.remove()
    shapes = {tensor_name(name, "A"): layers.matrices[tensor_name(name, "A")] for name in modules}
    rank = max(shape[0] for shape in layers.matrices.values())
    components: dict[tuple[int, ...], np.ndarray] = {}
    for name, tokens in inputs.found.items():
        key = tuple(map(id, tokens))
        if key not in components:
            components[key] = components_of(torch.cat(tokens), rank, name)
    found = {tensor_name(name, "A"): components[tuple(map(id, tokens))] for name, tokens in inputs.found.items()}
    return start_with(found, shapes, seed)


def some_of(examples: Sequence[Example]) -> Sequence[Example]:
    """NUM_EXAMPLES, evenly taken."""
    return examples[:: max(1, len(examples) // NUM_EXAMPLES)][:NUM_EXAMPLES]


def start_with(components: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], seed: int) -> Start:
    """A of each name, with its components as the first rows, and the others drawn from `seed`."""
    drawn = initial_theta(shapes, seed)
    for name, found in components.items():
        rows = drawn[name]
        rows[: len(found)] = found[: len(rows)]
    return Start.of(drawn)


def answered(
    engine: Engine, theta: Theta, prompts: Sequence[Example], context: int | None, stop: TokenIds
) -> list[Example]:
    """Prompts with what the model itself goes on with, up to a token of `stop`."""
    room = (context or MAX_TOKENS) - max(len(prompt.prompt) + len(prompt.invocation) for prompt in prompts)
    (written,) = engine.generate(theta, [AT_THETA], prompts, Sampling(max(1, min(NUM_WRITTEN, room)), 0.0, 0, stop))
    return [replace(prompt, candidates=(text or stop[:1],)) for prompt, text in zip(prompts, written, strict=True)]


def stop_tokens(eos_token_id: int | list[int] | None) -> TokenIds:
    """As transformers has them in configurations."""
    return tuple(eos_token_id) if isinstance(eos_token_id, list) else () if eos_token_id is None else (eos_token_id,)


class _Inputs:
    """What goes into each module, at most so many tokens a pass."""

    def __init__(self, layers: TrainedLayers, tokens_a_pass: int) -> None:
        self.layers = layers
        self.tokens_a_pass = tokens_a_pass
        self.found: dict[str, list[torch.Tensor]] = {}
        self._last: torch.Tensor | None = None  # modules side by side read the same

    def observe(self, name: str, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if not self.layers.active:
            return
        tokens = self._tokens(args[0])
        if self._last is None or not torch.equal(self._last, tokens):
            self._last = tokens
        self.found.setdefault(name, []).append(self._last)

    def _tokens(self, inputs: torch.Tensor) -> torch.Tensor:
        assert self.layers.adapted is not None
        tokens = inputs.reshape(-1, inputs.shape[-1])[self.layers.adapted.reshape(-1)].float()
        if len(tokens) > self.tokens_a_pass:  # at random: every n-th may be the same word of the invocation
            order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))
            tokens = tokens[order[: self.tokens_a_pass].to(tokens.device)]
        return tokens


def components_of(tokens: torch.Tensor, number: int, module_name: str) -> np.ndarray:
    """The first principal components [at most `number`, inputs] of tokens [tokens, inputs]."""
    if not tokens.isfinite().all():
        raise FloatingPointError(f"the inputs of {module_name} are no numbers")
    centred = tokens.double() - tokens.double().mean(dim=0)
    few = len(tokens) < tokens.shape[1]  # of the two products of the matrix with itself, the smaller one
    squares, vectors = torch.linalg.eigh(centred @ centred.T if few else centred.T @ centred)
    kept = vectors.flip(1)[:, :number][:, squares.flip(0)[:number] > 1e-12 * squares[-1].clamp(min=1e-30)]
    rows = kept.T @ centred if few else kept.T
    return torch.nn.functional.normalize(rows, dim=1).float().cpu().numpy()
