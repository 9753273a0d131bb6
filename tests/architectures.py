"""Every causal architecture of the installed transformers, tiny, against transformers alone.

`python -m tests.architectures` scores all of them (some minutes) and writes the table of docs/models.md;
`python -m tests.architectures llama mpt` prints what it finds of some; with `--half` first, where the trial at the
start finds something else in bfloat16 than in float32. Each number is compared, in fp32, with a forward pass of one row
without padding, mask or cache: of the bare model, of PEFT with the exported adapter, or of a copy whose weights were
moved. The examples begin alike, branch, and lie on both sides of every window and chunk.
"""

import copy
import gc
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from runs.page import put
from transformers import PreTrainedModel

from tests.tiny_models import KINDS, VOCABULARY, tiny_model
from zotune.adapter.peft_files import save_adapter
from zotune.adapter.spec import LoraSpec, tensor_name
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.plain import PlainEngine
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.errors import InputError, first_line
from zotune.zo.draws import gaussian
from zotune.zo.protocol import AT_THETA, Example, Probe, Sampling, Theta

TOLERANCE = 2e-4  # nats, of sums of at most three log-probabilities
SLOPE_TOLERANCE = 0.02  # of the largest slope: differences of fp32 scores
MOVED = 0.01  # how far all parameters are moved
NUM_NEW = 4  # tokens generated

_draw = np.random.default_rng(0)


def _tokens(count: int) -> tuple[int, ...]:
    return tuple(int(token) for token in _draw.integers(2, VOCABULARY, count))


SHARED, INVOCATION, STEM = _tokens(10), (301, 302), (303,)
BATCH = [
    Example(SHARED + _tokens(count), INVOCATION, (_tokens(1), STEM + _tokens(1), (*STEM, 304, 305), (*STEM, 306, 307)))
    for count in (50, 35, 5, 1)  # tokens.WINDOW lies between
]
DIRECTIONS = [Probe(seed, 0.0, derivative=True) for seed in range(5, 10)]


@dataclass(frozen=True)
class Finding:
    """What came out of one check: `how` the numbers are computed, or why not; `error` against the reference."""

    how: str
    error: float | None = None

    @property
    def is_right(self) -> bool:
        return self.error is None or self.error < 1.0  # in units of the tolerance


def scan(model: PreTrainedModel) -> dict[str, Finding]:
    """All checks of one architecture."""
    findings: dict[str, Finding] = {}
    for scope in ("everywhere", "activated"):
        findings |= _found(scope, lambda scope=scope: _adapter(model, scope))  # type: ignore[misc]
    findings |= _found("all parameters", lambda: _all_parameters(model))
    findings |= _found("generation", lambda: _generation(model))
    return findings


def _found(name: str, check: Callable[[], dict[str, Finding]]) -> dict[str, Finding]:
    try:
        return check()
    except InputError as error:
        return {name: Finding(f"refused: {error}")}


def _adapter(model: PreTrainedModel, scope: str) -> dict[str, Finding]:
    """LoRA on all linear layers: scores, and in PEFT with the exported adapter; derivatives and gradients too."""
    spec = LoraSpec(2, 4.0, ("all-linear",), INVOCATION if scope == "activated" else None)
    engine = TorchEngine(model, spec, PrefixCache(1e9, 8))
    try:
        theta = _theta(engine, 1)
        want = _with_products(model, theta, engine.scope)
        scores = [each.score(theta, [AT_THETA], BATCH).log_probs[0] for each in (engine, engine.plain)]
        findings = {scope: Finding(_way(engine), max(np.abs(each - want).max() for each in scores) / TOLERANCE)}
        findings[f"{scope}, PEFT"] = _with_peft(model, theta, engine, want)
        if scope == "everywhere":
            for name, check in (("derivatives", _derivatives), ("gradient", _gradient)):
                for seed in (1, 2, 3):  # where theta is next to a jump of a router, differences say nothing
                    findings[name] = check(engine, _theta(engine, seed))
                    if findings[name].is_right:
                        break
        return findings
    finally:
        engine.close()


def _theta(engine: TorchEngine, seed: int) -> Theta:
    return {name: np.float32(0.1) * gaussian(seed, name, shape) for name, shape in engine.tensor_shapes.items()}


def _with_products(model: PreTrainedModel, theta: Theta, scope: str) -> np.ndarray:
    """The scores of a copy to whose linear layers the products are added by hand."""
    adapted = tiny_copy(model)
    row: dict[str, int] = {}  # how many tokens it has, and from which on the adapter acts

    def add(name: str, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        a, b = (torch.from_numpy(theta[tensor_name(name, matrix)]) for matrix in "AB")
        product = 2.0 * args[0] @ a.T @ b.T
        if scope == "activated":
            count = product[..., 0].numel()  # more than the row has where the model pads it; fewer in poolers
            acts = (torch.arange(count) >= row["start"])[:, None].to(product)
            product = (product.reshape(count, -1) * acts).reshape(product.shape)
        return output + product

    for name, module in adapted.named_modules():
        if tensor_name(name, "A") in theta:
            module.register_forward_hook(lambda module, args, output, name=name: add(name, args, output))

    def begin(tokens: int, start: int) -> None:
        row.update(tokens=tokens, start=start)

    return reference(adapted, BATCH, begin)


def _with_peft(model: PreTrainedModel, theta: Theta, engine: TorchEngine, want: np.ndarray) -> Finding:
    from peft import PeftModel

    try:
        with tempfile.TemporaryDirectory() as folder:
            assert engine.spec is not None
            save_adapter(Path(folder), theta, engine.spec, "tiny")
            adapted = PeftModel.from_pretrained(tiny_copy(model), folder).eval()
        error = float(np.abs(reference(adapted, BATCH) - want).max())
    except Exception as problem:  # whatever PEFT and the model raise over each other
        return Finding(f"PEFT fails: {problem}")
    return Finding("equal" if error < TOLERANCE else f"PEFT differs by {error:.2g} nats")


def _way(engine: TorchEngine) -> str:
    if engine.plain_reason:
        return "row by row" if engine.plain.alone else "plain"
    return "reuse"


def tiny_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The model without whatever hooks it has."""
    bare = type(model)(copy.deepcopy(model.config))
    bare.load_state_dict(model.state_dict())
    return bare.eval()


def reference(
    model: torch.nn.Module, batch: list[Example], begin: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """Scores [example, candidate]: one row, no padding, no mask, no cache.

    Args:
        begin: told how many tokens the next row has, and where the invocation starts.
    """
    scores = np.full((len(batch), max(len(example.candidates) for example in batch)), -np.inf)
    for index, example in enumerate(batch):
        before = example.prompt + example.invocation
        for c, candidate in enumerate(example.candidates):
            if begin:
                begin(len(before) + len(candidate), len(example.prompt))
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*before, *candidate]]), use_cache=False).logits[0].float()
            log_probs = torch.log_softmax(logits, dim=-1)
            scores[index, c] = sum(log_probs[len(before) - 1 + i, token].item() for i, token in enumerate(candidate))
    return scores


def _derivatives(engine: TorchEngine, theta: Theta) -> Finding:
    if reason := engine.why_not("tangents"):
        return Finding(f"refused: {reason}")
    tangents = engine.score(theta, DIRECTIONS, BATCH).tangents
    assert tangents is not None
    way = "plain" if engine.plain_tangents and not engine.plain_reason else _way(engine)
    along = tangents[:, 2:].sum(axis=(1, 2))
    return Finding(way, _slope_error(along, engine, theta))


def _gradient(engine: TorchEngine, theta: Theta) -> Finding:
    """The gradient of the sum of the scores of the short examples, along directions."""
    if reason := engine.why_not("gradients"):
        return Finding(f"refused: {reason}")
    _, gradient = engine.gradient(theta, BATCH[2:], lambda scores: np.ones(scores.num_tokens.shape))
    along = [
        sum(float((gradient[name] * z).sum()) for name, z in probe.noise.direction(probe.seed, theta).items())
        for probe in DIRECTIONS
    ]
    return Finding("row by row" if engine.plain.alone else "padded rows", _slope_error(np.array(along), engine, theta))


def _slope_error(slopes: np.ndarray, engine: TorchEngine, theta: Theta) -> float:
    """Against differences of the plain engine's scores, for the middle one of the directions: routers jump."""
    errors = []
    for distance in (1e-3, 3e-4, 1e-4):
        far = [Probe(probe.seed, sign * distance) for probe in DIRECTIONS for sign in (1, -1)]
        scores = engine.plain.score(theta, far, BATCH[2:]).log_probs.astype(np.float64).sum(axis=(1, 2))
        differences = (scores[0::2] - scores[1::2]) / (2 * distance)
        errors.append(np.abs(slopes - differences) / np.abs(differences).max())
    return float(np.median(np.min(errors, axis=0)) / SLOPE_TOLERANCE)


def _all_parameters(model: PreTrainedModel) -> dict[str, Finding]:
    """A probe of all parameters, against a copy whose weights were moved."""
    moved = tiny_copy(model)
    engine = TorchEngine(model, None)
    try:
        weights = engine.weights
        assert weights is not None
        probe = Probe(7, MOVED)
        z = probe.noise.direction(probe.seed, weights)
        named = dict(moved.named_parameters())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                pieces = [torch.from_numpy(z[piece]) for piece, _, _ in weights.pieces[id(parameter)]]
                named[name].add_(torch.cat(pieces) if parameter.dim() else pieces[0], alpha=MOVED)
        error = np.abs(engine.score(weights, [probe], BATCH).log_probs[0] - reference(moved, BATCH)).max()
        return {"all parameters": Finding(_way(engine), error / TOLERANCE)}
    finally:
        engine.close()


def _generation(model: PreTrainedModel) -> dict[str, Finding]:
    """Greedy tokens of the bare model against the best token of one row after the other, and under probes of an
    adapter those of the fast engine against the plain one's."""
    engine = PlainEngine(model, LoraSpec(1, 1.0, ()))
    try:
        how = "row by row" if engine.alone else "padded rows"
        found = engine.generate({}, [AT_THETA], BATCH[1:], Sampling(NUM_NEW))[0]
        for example, tokens in zip(BATCH[1:], found, strict=True):
            row = [*example.prompt, *example.invocation]
            for token in tokens:
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1]
                if logits.max() - logits[token] > TOLERANCE:
                    return {"generation": Finding("other tokens", np.inf)}
                row.append(token)
    finally:
        engine.close()
    together = [_generates_together(model, scope) for scope in ("everywhere", "activated")]
    if not all(right for right, _ in together):
        return {"generation": Finding("other tokens together", np.inf)}
    return {"generation": Finding("together" if all(fast for _, fast in together) else how, 0.0)}


def _generates_together(model: PreTrainedModel, scope: str) -> tuple[bool, bool]:
    """Whether the fast engine's texts are those of the plain one but for ties, and whether they were computed fast."""
    spec = LoraSpec(2, 4.0, ("all-linear",), INVOCATION if scope == "activated" else None)
    try:
        engine = TorchEngine(model, spec, PrefixCache(1e9, 8))
    except InputError:
        return True, False
    try:
        theta, probes = _theta(engine, 1), [Probe(3, distance) for distance in (0.0, 0.05, -0.05)]
        texts, plain = (each.generate(theta, probes, BATCH[1:], Sampling(NUM_NEW)) for each in (engine, engine.plain))
        fast = not (engine.plain_reason or engine.generation.plain_reason)
        for probe, ours, theirs in zip(probes, texts, plain, strict=True):
            for example, one, other in zip(BATCH[1:], ours, theirs, strict=True):
                place = next((i for i in range(NUM_NEW) if one[i] != other[i]), None)
                if place is not None:
                    tied = Example(example.prompt, example.invocation + one[:place], ((one[place],), (other[place],)))
                    first, second = engine.plain.score(theta, [probe], [tied]).log_probs[0, 0]
                    if abs(first - second) > TOLERANCE:
                        return False, fast
        return True, fast
    finally:
        engine.close()


def scan_all(kinds: list[str]) -> Iterator[tuple[str, dict[str, Finding] | str]]:
    """Findings of each kind, or why it cannot be built tiny."""
    for kind in kinds:
        try:
            model = tiny_model(kind)
        except Exception as error:
            yield kind, f"{type(error).__name__}: {first_line(error)}"
        else:
            yield kind, scan(model)
        gc.collect()


COLUMNS = {
    "everywhere": "LoRA everywhere", "activated": "LoRA activated", "derivatives": "derivatives",
    "gradient": "backpropagation", "all parameters": "all parameters", "generation": "generation",
}  # fmt: skip


def page(scanned: dict[str, dict[str, Finding] | str]) -> Iterator[str]:
    """The lines of the table, of what is refused, of what PEFT makes of the adapters, and of what was not built."""
    built = {kind: findings for kind, findings in scanned.items() if not isinstance(findings, str)}
    errors = [f.error or 0.0 for found in built.values() for n, f in found.items() if n in ("everywhere", "activated")]
    wrong = [f"{kind}: {n}" for kind, found in built.items() for n, f in found.items() if not f.is_right]
    yield f"Transformers {transformers.__version__}, PEFT {peft.__version__}. Built: {len(built)} of {len(scanned)}."
    yield f"Largest error of a score: {max(errors) * TOLERANCE:.0e} nats. Wrong: {', '.join(wrong) or 'none'}."
    yield ""
    yield "| architecture | " + " | ".join(COLUMNS.values()) + " | adapter in PEFT |"
    yield "| --- " * (len(COLUMNS) + 2) + "|"
    refused: dict[str, dict[str, list[str]]] = {}
    for kind, found in built.items():
        cells = []
        for name, column in COLUMNS.items():
            how = (found.get(name) or found["everywhere"]).how  # refused with it
            cells.append("refused" if how.startswith("refused") else how)
            if how.startswith("refused"):
                refused.setdefault(_short(how.removeprefix("refused: ")), {}).setdefault(kind, []).append(column)
        in_peft = {found[name].how for name in ("everywhere, PEFT", "activated, PEFT") if name in found}
        cells.append("equal" if in_peft == {"equal"} else "see below" if in_peft else "")
        yield f"| {kind} | " + " | ".join(cells) + " |"
    yield from _lists("Refused, and why", refused)
    others: dict[str, dict[str, list[str]]] = {}
    for kind, found in built.items():
        for scope in ("everywhere", "activated"):
            how = found.get(f"{scope}, PEFT", Finding("equal")).how
            if how != "equal":
                others.setdefault(_short(how), {}).setdefault(kind, []).append(scope)
    yield from _lists("Adapters that PEFT reads otherwise, or not at all", others)
    missing: dict[str, dict[str, list[str]]] = {}
    for kind, reason in scanned.items():
        if isinstance(reason, str):
            missing.setdefault(_short(reason), {})[kind] = []
    yield from _lists("Not built tiny", missing)


def _short(text: str) -> str:
    """The message without the name of the model, sizes, and what would break the table."""
    text = re.sub(
        r"[A-Za-z0-9_]+(ForCausalLM|LMHeadModel|ModelWithLMHead|ForConditionalGeneration)\b", "the model", text
    )
    text = re.sub(r"\[\d[^]]*\]", "[..]", text)
    return text.replace("|", "/").replace("<", "(").replace(">", ")")[:200]


def _lists(title: str, items: dict[str, dict[str, list[str]]]) -> Iterator[str]:
    """A line for each reason, with the kinds that it holds for, and which of their columns."""
    if items:
        yield from ("", f"**{title}**", "")
    for reason, kinds in items.items():
        places = [
            kind if len(columns) in (0, len(COLUMNS)) else f"{kind} ({', '.join(columns)})"
            for kind, columns in kinds.items()
        ]
        yield f"- {reason}: {', '.join(places)}"


def main(kinds: list[str]) -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    if kinds[:1] == ["--half"]:
        other_in_half(kinds[1:] or KINDS)
        return
    scanned = {}
    for kind, findings in scan_all(kinds or KINDS):
        scanned[kind] = findings
        print(kind, findings if isinstance(findings, str) else summary(findings), flush=True)
    if not kinds:
        put(Path(__file__).parents[1] / "docs" / "models.md", "architectures", "\n".join(page(scanned)) + "\n")


def other_in_half(kinds: list[str]) -> None:
    """Where the trial at the start does not find in bfloat16 what it finds in float32, and how often it was asked."""
    asked = 0
    for kind in kinds:
        for scope in ("everywhere", "activated"):
            spec = LoraSpec(2, 4.0, ("all-linear",), INVOCATION if scope == "activated" else None)
            found = []
            for dtype in (torch.float32, torch.bfloat16):
                try:
                    model: Any = tiny_model(kind)
                    engine = TorchEngine(model.to(dtype), spec)
                    found.append(_way(engine))
                except Exception as error:  # not built, or refused
                    found.append(first_line(error))
            asked += 1
            if found[0] != found[1]:
                print(f"{kind}, {scope}: float32 {found[0]}; bfloat16 {found[1]}", flush=True)
    print(f"asked {asked} times")


def summary(findings: dict[str, Finding]) -> str:
    return "; ".join(f"{n}: {f.how}" + ("" if f.error is None else f" {f.error:.1g}") for n, f in findings.items())


if __name__ == "__main__":
    main(sys.argv[1:])
