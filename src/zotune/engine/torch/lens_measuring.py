"""The lens of a model, measured by forward passes alone (see `lens.py`).

In one pass, the probes side by side all enter each block in the state of the first of them, and all but the first are
moved along a direction, at one token. How the block's output moves is an answer of as many numbers as the state is
wide; so one pass measures all blocks at once, each by itself. The mean Jacobian from a block to the last state is then
the product of the blocks' means: what one block does to a small change hardly depends on what the others do, and on
SmolLM2 the product carries gradients as well as the mean of the products does (docs/decisions.md).
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from zotune.adapter.forms import initial_theta
from zotune.engine.scores import empty_scores
from zotune.engine.torch.blocks import features, find_blocks, state_into, state_out, with_state_into
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.lens import Lens
from zotune.engine.torch.lens_gradient import Record
from zotune.engine.torch.lora import LoraLayers
from zotune.engine.torch.plain import PlainEngine
from zotune.engine.torch.suffix import make_suffix
from zotune.engine.torch.trial import agree
from zotune.errors import InputError, first_line
from zotune.zo.draws import derive_seed, gaussian, rademacher
from zotune.zo.protocol import AT_THETA, Example, Scores, TokenIds

logger = logging.getLogger("zotune")

NUM_EXAMPLES = 64
REPEATS = 8  # of each direction, at different examples
DRAWS = 8  # of cotangents, for the directions that gradients take at the top
DISTANCE = 0.05  # of a move, in lengths of what is moved
TOKENS_A_PASS = 2048
MAX_BYTES = 2**26  # of the lens
FEW = 16  # moves that show whether a module's output is the last that is added to the block's
SAME = 0.05  # how far those may be off, in their lengths
WRITES = 0.5  # how much of a move at its output a module must find again behind the block, to write into the stream

Modules = Mapping[int, nn.Module]
"""By block, the module whose output is moved; none of a block: its input is."""


def measure_lens(engine: TorchEngine | PlainEngine, examples: Sequence[Example], seed: int) -> Lens:
    """The lens from the adapted modules to the last residual state, at scored tokens of NUM_EXAMPLES examples.

    Raises:
        InputError: the model has no residual stream that goes from block to block.
        FloatingPointError: what it computes is not finite.
    """
    began = time.perf_counter()
    examples = examples[:: max(1, len(examples) // NUM_EXAMPLES)][:NUM_EXAMPLES]
    stats = vars(engine.stats).copy()
    try:
        lens = _Measurement(engine, examples, seed).lens()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # ours, or whatever a model's own code raises over other states
        name = type(engine.model).__name__
        raise InputError(
            f"--estimator lens: {name} has no lens ({first_line(error)}); take another estimator"
        ) from error
    finally:
        vars(engine.stats).update(stats)
    if not all(bool(matrix.isfinite().all()) for matrix in lens.carried.values()):
        raise FloatingPointError("the lens of the model is not finite")
    logger.info("a lens of %d modules is measured: %.1f s", len(lens.carried), time.perf_counter() - began)
    return lens


class _Measurement:
    """Of one engine, at its start."""

    def __init__(self, engine: TorchEngine | PlainEngine, examples: Sequence[Example], seed: int) -> None:
        self.engine, self.examples, self.seed = engine, examples, seed
        assert isinstance(engine.layers, LoraLayers)
        self.layers = engine.layers
        self.watch = engine.watch()
        self.blocks = find_blocks(engine.model)
        self.contexts = [_context(example, seed, index) for index, example in enumerate(examples)]
        self.width = 0  # of the residual state
        self.plain = self._is_plain()

    def lens(self) -> Lens:
        kinds = self._kinds()
        basis = self._basis()
        through = self._jacobians({})
        jacobians = {kind: self._jacobians(modules) for kind, modules in kinds.items()}
        carried: dict[str, torch.Tensor] = {}
        writers, rows, names = set(), basis, {id(module): name for name, module in self.layers.modules.items()}
        for index in range(len(self.blocks) - 1, -1, -1):
            for kind, modules in kinds.items():
                if index in modules:
                    name, jacobian = names[id(modules[index])], jacobians[kind][index]
                    carried[name] = rows @ jacobian
                    if jacobian.shape[0] == jacobian.shape[1] and float(jacobian.diagonal().mean()) > WRITES:
                        writers.add(name)
            rows = rows @ through[index]
        return Lens(basis, {name: carried[name] for name in self.layers.modules}, frozenset(writers))

    def _kinds(self) -> Mapping[str, Modules]:
        """The adapted modules by their names within a block."""
        kinds: dict[str, dict[int, nn.Module]] = {}
        found: dict[int, tuple[int, str]] = {}
        for index, block in enumerate(self.blocks):
            found |= {id(module): (index, name) for name, module in block.named_modules()}
        for name, module in self.layers.modules.items():
            if id(module) not in found:
                raise TypeError(f"{name} lies outside its blocks")
            index, within = found[id(module)]
            kinds.setdefault(within, {})[index] = module
        return kinds

    def _basis(self) -> torch.Tensor:
        """Orthonormal rows for the gradients at the last state; all of the space, where that is not too large."""
        theta = initial_theta(self.engine.tensor_shapes, self.seed, self.engine.spec)
        record = Record(self.watch, self.engine.parts(self.examples), self.examples, theta)
        some = self.examples[:4]
        found, expected = record.scores.log_probs[:, : len(some)], self.engine.score(theta, [AT_THETA], some)
        noise = (self.engine if isinstance(self.engine, PlainEngine) else self.engine.plain).noise
        found = found[..., : expected.log_probs.shape[-1]]
        if not agree(self.engine.model, Scores(found, expected.num_tokens), expected, noise):
            raise TypeError("its scores change when the last state is recorded")

        def cotangents(draw: int, scores: Scores) -> np.ndarray:
            return gaussian(self.seed, f"lens/cotangents/{draw}", scores.num_tokens.shape)

        drawn = []
        for draw in range(DRAWS):
            for gradients, low in record.gradients(partial(cotangents, draw)):
                if any(value.requires_grad or len(value) != len(gradients) for value in low.values()):
                    raise TypeError("an adapted module reads other tokens than its block, or comes after the last one")
                drawn.append(gradients)
        self.width = drawn[0].shape[-1]
        outputs = sum(shape[0] for name, shape in self.layers.matrices.items() if name.endswith("lora_B.weight"))
        rank = MAX_BYTES // (4 * (outputs + self.width))
        if rank >= self.width:
            return torch.eye(self.width, device=self.engine.model.device)
        return torch.linalg.svd(torch.cat(drawn), full_matrices=False)[2][:rank]

    def _jacobians(self, modules: Modules) -> list[torch.Tensor]:
        """Of each block's output [width, moved], by its input or by the output of a module in it: means of contexts."""
        sizes = {features(module)[1] for module in modules.values()} or {self.width}
        if len(sizes) > 1:
            raise TypeError("modules of the same name have outputs of different sizes")
        size, device = sizes.pop(), self.engine.model.device
        drawn = torch.from_numpy(gaussian(self.seed, f"lens/{size}", (size, size)))
        directions = torch.linalg.qr(drawn)[0].T.to(device)  # orthonormal rows
        if modules and size == self.width:
            some = directions[:FEW]
            answers = self._moved(modules, directions, self.contexts[:1], len(some)).answers(len(some))
            if all((found - some).norm() < SAME * some.norm() for found in answers):
                return [torch.eye(size, device=device)] * len(self.blocks)
        each = -(-REPEATS * size // len(self.contexts))  # moves of a context
        return self._moved(modules, directions, self.contexts, each).means(directions)

    def _moved(self, modules: Modules, directions: torch.Tensor, contexts: list[TokenIds], each: int) -> "_Moves":
        """So many moves of each context, along all directions in turn."""
        size = len(directions)
        moves = _Moves(self.blocks, modules, size, self.width, self.layers)
        order = sorted(range(len(contexts)), key=lambda i: len(contexts[i]))
        rows = 1 if self.plain else max(1, TOKENS_A_PASS // (each + 1))
        signs = torch.from_numpy(rademacher(self.seed, "lens/signs", (len(contexts), each))).to(directions.device)
        self.layers.active = False
        try:
            for first in range(0, len(order), rows):
                some = order[first : first + rows]
                which = (torch.tensor(some)[:, None] * each + torch.arange(each)) % size
                moves.begin(directions, which.to(directions.device), signs[some])
                self._run([contexts[i] for i in some], each + 1, moves)
        finally:
            self.layers.active = True
        return moves

    def _is_plain(self) -> bool:
        """Whether contexts are computed whole, since the model does not take kept prompts as they are here."""
        engine = self.engine
        if isinstance(engine, PlainEngine) or engine.plain_reason is not None:
            return True
        if engine.scope == "activated":  # where a trial has shown it
            return False
        theta = initial_theta(engine.tensor_shapes, self.seed, engine.spec)  # at which the model is the base model
        batch = [Example(context[:-1], context[-1:], (context[-1:],)) for context in self.contexts[:2]]
        reference = engine.plain.score(theta, [AT_THETA], batch)
        scores = empty_scores(1, batch)[1]
        engine.head.normalized = True
        engine.layers.place(theta, [AT_THETA])
        with torch.inference_mode():
            engine.activated.score(1, batch, scores)
        return not agree(engine.model, Scores(scores, reference.num_tokens), reference, engine.plain.noise)

    @torch.inference_mode()
    def _run(self, contexts: list[TokenIds], num_probes: int, moves: "_Moves") -> None:
        """One pass of as many probes of each context as directions are tried there, which differ by moves alone."""
        if self.plain:
            ids = torch.tensor(contexts[0], device=self.engine.model.device).expand(num_probes, -1)
            with moves.open():
                self.engine.model(input_ids=ids, use_cache=False, logits_to_keep=1)
            return
        assert isinstance(self.engine, TorchEngine)
        activated = self.engine.activated
        prompts = [context[:-1] for context in contexts]
        kv = activated.prompts.kv(prompts)
        suffixes = [make_suffix(context[-1:], (context[-1:],)) for context in contexts]
        self.layers.active, self.engine.head.normalized = False, False
        with moves.open():
            activated.log_probs(prompts, kv, list(range(len(contexts))), suffixes, num_probes)
        activated.prompts.cache.trim()


class _Moves:
    """Hooks that move what goes on in each block, at the last token of each context, and add up how its output moves.

    Args:
        modules: those whose outputs are moved; none: the blocks' inputs are.
        size: of what is moved.
    """

    def __init__(self, blocks: list[nn.Module], modules: Modules, size: int, width: int, layers: LoraLayers) -> None:
        self.blocks, self.modules, self.layers = blocks, modules, layers
        device = layers.device
        self.sums = [torch.zeros(size, width, device=device) for _ in blocks]
        self.counts = torch.zeros(size, device=device)
        self._distances: torch.Tensor | None = None  # of the moves, where something was moved
        self._before: list[torch.Tensor | None] = [None] * len(blocks)  # what each block gave in this pass

    def begin(self, directions: torch.Tensor, which: torch.Tensor, signs: torch.Tensor) -> None:
        """The moves of the next pass: rows `which` of the directions [contexts, moves], each forth or back."""
        self.which, self.signs = which, signs
        self.moves = directions[which] * signs[..., None]
        self.counts += torch.bincount(which.flatten(), minlength=len(self.counts))

    @contextmanager
    def open(self) -> Iterator[None]:
        hooks: list[Any] = []
        for index, block in enumerate(self.blocks):
            hooks.append(block.register_forward_pre_hook(partial(self._enter, index), with_kwargs=True))
            hooks.append(block.register_forward_hook(partial(self._leave, index)))
            if index in self.modules:
                hooks.append(self.modules[index].register_forward_hook(partial(self._move_output, index)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def answers(self, count: int) -> list[torch.Tensor]:
        """Mean answers to the first directions [count, width], of the blocks where something was moved."""
        return [self.sums[index][:count] / self.counts[:count, None] for index in self.modules]

    def means(self, directions: torch.Tensor) -> list[torch.Tensor]:
        """The Jacobians [width, size] of all blocks; zeros where nothing was moved."""
        return [(total / self.counts[:, None]).T @ directions for total in self.sums]

    def _enter(self, index: int, module: nn.Module, args: Any, kwargs: Any) -> Any:
        state = state_into(args, kwargs)
        before = self._before[index - 1] if index else state
        if before is None or not torch.equal(state, before):
            raise TypeError("what a block gives is not what the next one takes")
        by_probe = self._by_probe(state)
        same = by_probe[:, :1].expand_as(by_probe).clone()
        self._lengths, self._distances = same[:, 0, -1].float().norm(dim=-1), None
        if not self.modules:
            self._move(same)
        return with_state_into(args, kwargs, same.view_as(state))

    def _move_output(self, index: int, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        by_probe = self._by_probe(output.float()).clone()
        if by_probe.shape[-1] != self.sums[index].shape[1]:
            self._lengths = by_probe[:, 0, -1].norm(dim=-1)
        self._move(by_probe)
        moved = by_probe.view(output.shape)
        return moved if self.layers.float_stream else moved.to(output.dtype)

    def _leave(self, index: int, module: nn.Module, args: Any, output: Any) -> None:
        state = state_out(output)
        self._before[index] = state
        if self.modules and index not in self.modules:
            return
        if self._distances is None:
            raise TypeError("a module that is adapted takes no part in its block")
        last = self._by_probe(state)[:, :, -1].float()
        answers = (last[:, 1:] - last[:, :1]) / self._distances[:, None, None] * self.signs[..., None]
        self.sums[index].index_add_(0, self.which.flatten(), answers.flatten(0, 1))

    def _move(self, by_probe: torch.Tensor) -> None:
        self._distances = DISTANCE * self._lengths.clamp(min=1e-6)
        by_probe[:, 1:, -1] += (self._distances[:, None, None] * self.moves).to(by_probe.dtype)

    def _by_probe(self, state: torch.Tensor) -> torch.Tensor:
        """[contexts, probes, tokens, width]"""
        groups, moves, _ = self.moves.shape
        return state.reshape(groups, moves + 1, -1, state.shape[-1])


def _context(example: Example, seed: int, index: int) -> TokenIds:
    """What stands before one of the scored tokens, drawn from those of the right candidate, or of any."""
    drawn = derive_seed(seed, "lens/context", index)
    candidate = example.candidates[drawn % len(example.candidates) if example.label is None else example.label]
    return example.prompt + example.invocation + candidate[: drawn % len(candidate)]
