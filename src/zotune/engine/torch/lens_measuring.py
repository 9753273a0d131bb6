"""Whether a model has gradients by the lens, and the lens of those blocks that need one (see `lens.py`).

A trial computes every block again for few tokens. Where attention does not give again what it gave, its mean Jacobian
is measured by forward passes alone (`lens_moves.py`).
"""

import logging
import time
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from zotune.adapter.forms import initial_theta
from zotune.engine.scores import empty_scores
from zotune.engine.torch.backward import checked_record, frozen
from zotune.engine.torch.blocks import attention_of, features, find_blocks, state_out
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.lens import Factors, Lens
from zotune.engine.torch.lens_gradient import Record
from zotune.engine.torch.lens_moves import Modules, Moves
from zotune.engine.torch.lora import LoraLayers
from zotune.engine.torch.model_kind import sees_all
from zotune.engine.torch.plain import PlainEngine
from zotune.engine.torch.suffix import make_suffix
from zotune.engine.torch.trial import agree
from zotune.engine.torch.visits import Visit
from zotune.errors import NoLens, first_line
from zotune.zo.draws import derive_seed, gaussian, rademacher
from zotune.zo.protocol import AT_THETA, Example, Scores, TokenIds

logger = logging.getLogger("zotune")

NUM_EXAMPLES = 64
REPEATS = 8  # of each direction, at different examples
TOKENS_A_PASS = 2048
RANK = 64  # of a Jacobian, as it is kept
MAX_BYTES = 2**28  # of the Jacobians that one pass measures
FEW = 16  # moves that show whether what a module gives is what attention gives
SAME = 0.05  # how far those may be off, in their lengths
RECOMPUTED = 0.02  # how far a block may be off for the scored tokens alone, in lengths of what it adds to the state


def measure_lens(
    engine: TorchEngine | PlainEngine, examples: Sequence[Example], seed: int, everywhere: bool = False
) -> Lens:
    """The lens of those blocks whose attention cannot be computed again, at scored tokens of NUM_EXAMPLES examples.

    Args:
        everywhere: of all blocks, for an engine that does not compute attention again.

    Raises:
        NoLens: the model is not of the form that a lens needs.
        FloatingPointError: what it computes is not finite.
    """
    began = time.perf_counter()
    examples = examples[:: max(1, len(examples) // NUM_EXAMPLES)][:NUM_EXAMPLES]
    stats = vars(engine.stats).copy()
    try:
        lens = _Measurement(engine, examples, seed).lens(everywhere)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # ours, or whatever a model's own code raises over other states
        name = type(engine.model).__name__
        raise NoLens(f"--estimator lens: {name} has no lens ({first_line(error)}); take another estimator") from error
    finally:
        vars(engine.stats).update(stats)
    if not all(bool(matrix.isfinite().all()) for factors in lens.through.values() for matrix in factors):
        raise FloatingPointError("the lens of the model is not finite")
    if lens.through:
        logger.info("a lens of %d blocks is measured: %.1f s", len(lens.through), time.perf_counter() - began)
    return lens


class _Measurement:
    """Of one engine, at its start."""

    def __init__(self, engine: TorchEngine | PlainEngine, examples: Sequence[Example], seed: int) -> None:
        self.engine, self.examples, self.seed = engine, examples, seed
        assert isinstance(engine.layers, LoraLayers)
        self.layers = engine.layers
        self.blocks = find_blocks(engine.model)
        self.contexts = [_context(example, seed, index) for index, example in enumerate(examples)]
        self.width = 0  # of the residual state
        self.plain = self._is_plain()

    def lens(self, everywhere: bool) -> Lens:
        kinds, wanted = self._kinds(), self._try()
        if everywhere:
            wanted = list(range(len(self.blocks)))
        if not wanted:
            return Lens({}, {})
        if sees_all(self.engine.model):
            raise TypeError("attention cannot be computed again, and of a masked model its Jacobian is not measured")
        through = self._jacobians({}, wanted)
        names = {id(module): name for name, module in self.layers.modules.items()}
        within: dict[str, Factors] = {}
        for modules in kinds.values():
            own = [index for index in wanted if index in modules]
            found = self._jacobians(modules, own) if own else {}
            within |= {names[id(modules[index])]: factors for index, factors in found.items()}
        return Lens(through, within)

    def _kinds(self) -> Mapping[str, Modules]:
        """The adapted modules inside attention, by their names within a block."""
        kinds: dict[str, dict[int, nn.Module]] = {}
        found: dict[int, tuple[int, str]] = {}
        for index, block in enumerate(self.blocks):
            found |= {id(module): (index, name) for name, module in block.named_modules()}
        for name, module in self.layers.modules.items():
            if id(module) not in found:
                raise TypeError(f"{name} lies outside its blocks")
            index, within = found[id(module)]
            if any(module is other for other in attention_of(self.blocks[index]).modules()):
                kinds.setdefault(within, {})[index] = module
        return kinds

    def _try(self) -> list[int]:
        """Whether scores stay what they are when the last state is recorded, and blocks can be computed again for the
        scored tokens alone; those blocks where attention cannot."""
        model, measured = self.engine.model, set[int]()
        theta, _ = self.layers.trial()
        some = self.examples[:4]
        expected = self.engine.score(theta, [AT_THETA], some)
        record = Record(*self.engine.watched(some), some, theta)
        noise = (self.engine if isinstance(self.engine, PlainEngine) else self.engine.plain).noise
        if not agree(model, record.scores, expected, noise):
            raise TypeError("its scores change when the last state is recorded")
        for seen in record.seen:
            if any(visit.state.requires_grad for visit in seen.visits):
                raise TypeError("a block comes after the last one")
            self.width = seen.states.shape[-1]
            states = [*(visit.state for visit in seen.visits[1:]), seen.states.detach()]
            for index, (visit, state) in enumerate(zip(seen.visits, states, strict=True)):
                if visit.state.ndim != 3:
                    raise TypeError("its residual state is not one vector a token")
                with record.watch.as_in(seen), torch.inference_mode(False), frozen(model):
                    if index not in measured and not self._same_again(self.blocks[index], visit, state, False):
                        measured.add(index)
                    if index in measured and not self._same_again(self.blocks[index], visit, state, True):
                        raise TypeError("for the scored tokens alone a block does not give what the next one takes")
        return sorted(measured)

    def _same_again(self, block: nn.Module, visit: Visit, state: torch.Tensor, measured: bool) -> bool:
        """Whether a block gives `state` again, and passes gradients back, with attention again or with what it gave."""
        attended = state_out(visit.attended) if measured else None
        try:
            with torch.no_grad():
                again = visit.again(block, visit.state, attended)
            with torch.enable_grad(), checked_record(self.engine.model, self.layers.head.modules):
                visit.back(block, torch.ones_like(state).flatten(0, 1), {}, measured)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever a model's own code raises over attention that is not its own
            if measured:
                raise
            return False
        rounding = torch.finfo(self.engine.model.dtype).eps * state.float().norm()
        added = (state - visit.state).float().norm()
        return bool((again - state).float().norm() <= RECOMPUTED * added + rounding)

    def _jacobians(self, modules: Modules, wanted: list[int]) -> dict[int, Factors]:
        """By wanted block, of what attention gives [width, moved], by the block's input or by the output of a module in
        its attention: means of contexts."""
        sizes = {features(module)[1] for module in modules.values()} or {self.width}
        if len(sizes) > 1:
            raise TypeError("modules of the same name have outputs of different sizes")
        size, device = sizes.pop(), self.engine.model.device
        drawn = torch.from_numpy(gaussian(self.seed, f"lens/{size}", (size, size)))
        directions = torch.linalg.qr(drawn)[0].T.to(device)  # orthonormal rows
        if modules and size == self.width:
            some = directions[:FEW]
            moves = self._moved(modules, directions, self.contexts[:1], len(some), wanted)
            if all((moves.mean(index)[: len(some)] - some).norm() < SAME * some.norm() for index in wanted):
                return dict.fromkeys(wanted, ())
        each = -(-REPEATS * size // len(self.contexts))  # moves of a context
        factors: dict[int, Factors] = {}
        count = max(1, MAX_BYTES // (4 * size * self.width))
        for first in range(0, len(wanted), count):
            moves = self._moved(modules, directions, self.contexts, each, wanted[first : first + count])
            for index in moves.sums:
                factors[index] = _kept(moves.mean(index).T @ directions, directions)
        return factors

    def _moved(
        self, modules: Modules, directions: torch.Tensor, contexts: list[TokenIds], each: int, wanted: list[int]
    ) -> Moves:
        """So many moves of each context, along all directions in turn, in the wanted blocks."""
        size = len(directions)
        moves = Moves(self.blocks, wanted, modules, size, self.width, self.layers)
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
        if sees_all(engine.model) or isinstance(engine, PlainEngine) or engine.plain_reason is not None:
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
    def _run(self, contexts: list[TokenIds], num_probes: int, moves: Moves) -> None:
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


def _kept(jacobian: torch.Tensor, directions: torch.Tensor) -> Factors:
    """A Jacobian as it is kept: of low rank, by a sketch of its range (Halko et al., 2011, arXiv 0909.4061)."""
    if min(jacobian.shape) <= 2 * RANK:
        return (jacobian,)
    sketch = jacobian @ directions[: 2 * RANK].T
    basis = torch.linalg.qr(jacobian @ (jacobian.T @ sketch))[0]
    left, values, right = torch.linalg.svd(basis.T @ jacobian, full_matrices=False)
    return basis @ (left * values)[:, :RANK], right[:RANK]


def _context(example: Example, seed: int, index: int) -> TokenIds:
    """What stands before one of the scored tokens, drawn from those of the right candidate, or of any."""
    drawn = derive_seed(seed, "lens/context", index)
    candidate = example.candidates[drawn % len(example.candidates) if example.label is None else example.label]
    return example.prompt + example.invocation + candidate[: drawn % len(candidate)]
