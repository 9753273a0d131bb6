"""Gradients of the torch engines against autograd on transformers and PEFT, each other, and forward mode."""

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel

from tests.conftest import TARGETS, make_model
from tests.test_fast_engine import BLOCK, BLOCK_BYTES, batches, some_theta
from tests.test_quantized import CONFIGS as QUANTIZED
from tests.test_quantized import KINDS
from zotune.adapter.peft_files import save_adapter
from zotune.adapter.spec import PROMPT_EMBEDDINGS, LoraSpec, PromptSpec
from zotune.engine.pool import EnginePool
from zotune.engine.torch.attention import PromptKV
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.loading import load_model
from zotune.engine.torch.plain import PlainEngine
from zotune.engine.torch.prefix_cache import NoPrefixCache, PrefixCache
from zotune.zo.noise import GAUSSIAN
from zotune.zo.protocol import AT_THETA, Example, Probe, Scores, Theta

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


# ---- against others' code and each other


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_gradient_equals_autograds_on_peft(make, scope, kind, tmp_path):
    """PEFT's own LoRA and aLoRA, whole sequences, and a loss that is written out here."""
    engine = make(make_model(kind), make_spec(kind, scope))
    theta = some_theta(engine)
    save_adapter(tmp_path, theta, engine.spec, "none")
    reference = PeftModel.from_pretrained(make_model(kind), tmp_path, is_trainable=True).eval()
    loss = mean_loss(candidates_log_probs(reference, BATCH), counts_of(BATCH), [e.label for e in BATCH])
    loss.backward()
    expected = {
        name.replace(".default", ""): array(parameter.grad)
        for name, parameter in reference.named_parameters()
        if parameter.requires_grad
    }
    scores, gradient = engine.gradient(theta, BATCH, cotangents(BATCH))
    assert_close(gradient, {name: expected[name] for name in theta})
    ours = mean_loss(torch.tensor(scores.log_probs[0]), torch.tensor(scores.num_tokens), [e.label for e in BATCH])
    assert float(ours) == pytest.approx(loss.item(), rel=TOLERANCE)


@pytest.fixture(scope="module", params=[(kind, scope) for kind in TARGETS for scope in SCOPES], ids="-".join)
def pair(request):
    kind, scope = request.param
    fast, plain = make_fast(kind, scope), PlainEngine(make_model(kind), make_spec(kind, scope))
    assert fast.plain_reason is None
    return fast, plain, some_theta(plain)


@settings(max_examples=20)
@given(batch=batches(), seed=st.integers(0, 99))
def test_gradient_through_the_suffix_equals_that_of_whole_sequences(pair, batch, seed):
    fast, plain, theta = pair
    (scores, gradient), (whole, expected) = (engine.gradient(theta, batch, drawn(seed)) for engine in (fast, plain))
    np.testing.assert_allclose(scores.log_probs, whole.log_probs, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_array_equal(scores.num_tokens, whole.num_tokens)
    assert_close_to_terms(gradient, expected, terms_of(plain, theta, batch, seed))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_gradient_along_directions_equals_the_slopes_of_forward_mode(make, scope, kind, form):
    engine = make(make_model(kind), make_spec(kind, scope, form))
    theta, weights = some_theta(engine), drawn(3)
    scores, gradient = engine.gradient(theta, BATCH, weights)
    assert list(gradient) == list(engine.tensor_shapes)
    tangents = engine.score(theta, [Probe(seed, 0.0, derivative=True) for seed in range(4)], BATCH).tangents
    slopes = (weights(scores) * tangents).sum(axis=(1, 2))
    ours = [flat(gradient) @ flat(GAUSSIAN.direction(seed, theta)) for seed in range(4)]
    np.testing.assert_allclose(ours, slopes, rtol=0, atol=1e-4 * np.abs(slopes).max())


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_gradient_of_a_soft_prompt_equals_autograds(make, kind):
    spec = PromptSpec(3)
    engine = make(make_model(kind), spec)
    theta = some_theta(engine)
    batch = [Example(spec.virtual_tokens + e.prompt, e.invocation, e.candidates, e.label) for e in BATCH]
    reference = make_model(kind)
    vectors = torch.tensor(theta[PROMPT_EMBEDDINGS], requires_grad=True)
    words: Any = reference.get_input_embeddings().weight

    def embed(ids):
        return torch.stack([vectors[-1 - i] if i < 0 else words[i] for i in ids])[None]

    mean_loss(
        candidates_log_probs(reference, batch, embed), counts_of(batch), [e.label for e in batch]
    ).backward()  # fmt: skip
    assert engine.why_not("gradients") is None
    _, gradient = engine.gradient(theta, batch, cotangents(batch))
    assert_close(gradient, {PROMPT_EMBEDDINGS: array(vectors.grad)})


# ---- what must not matter


@settings(max_examples=10)
@given(batch=batches(), other=batches(), seed=st.integers(0, 99))
def test_the_same_call_gives_the_same_bits_whatever_was_cached_before(batch, other, seed):
    engine, none = make_fast(cache=PrefixCache(1e9, BLOCK)), make_fast(cache=NoPrefixCache(BLOCK))
    tiny = make_fast(cache=PrefixCache(3 * BLOCK_BYTES, BLOCK))
    theta = some_theta(engine)
    cold_scores, cold = none.gradient(theta, batch, drawn(seed))
    engine.score(theta, [Probe(seed, 1e-2)], other)
    engine.gradient(theta, other, drawn(seed))
    for warm in (engine, engine, tiny, tiny):
        scores, gradient = warm.gradient(theta, batch, drawn(seed))
        assert bits(gradient) == bits(cold)
        assert scores.log_probs.tobytes() == cold_scores.log_probs.tobytes()
        assert tiny.cache.num_bytes <= 3 * BLOCK_BYTES


@settings(max_examples=10)
@given(batch=batches(), budget=st.integers(1, 60), seed=st.integers(0, 99))
@pytest.mark.parametrize("scope", SCOPES)
def test_neither_packs_nor_pieces_of_the_head_change_it(scope, batch, budget, seed):
    whole = make_fast(scope=scope)
    theta = some_theta(whole)
    packed = make_fast(scope=scope, max_tokens_per_forward=budget)
    packed.plain.max_tokens_per_forward = budget
    pieces = make_fast(scope=scope)
    pieces.head.max_logits = 1
    scores, expected = whole.gradient(theta, batch, drawn(seed))
    terms = terms_of(whole.plain, theta, batch, seed)
    for engine in (packed, packed.plain, pieces):
        again, gradient = engine.gradient(theta, batch, drawn(seed))
        np.testing.assert_allclose(again.log_probs, scores.log_probs, rtol=TOLERANCE, atol=TOLERANCE)
        assert_close_to_terms(gradient, expected, terms)


def test_inside_inference_mode_or_without_gradients_it_is_the_same():
    engine = make_fast()
    theta = some_theta(engine)
    _, expected = engine.gradient(theta, BATCH, drawn(1))
    for mode in (torch.inference_mode(), torch.no_grad()):
        with mode:
            assert bits(engine.gradient(theta, BATCH, drawn(1))[1]) == bits(expected)


def test_scores_are_those_of_score_and_stay_the_same_bits():
    for scope in SCOPES:
        engine = make_fast(scope=scope)
        theta, probes = some_theta(engine), [AT_THETA, Probe(1, 1e-2)]
        before = engine.score(theta, probes, BATCH).log_probs
        scores, _ = engine.gradient(theta, BATCH, drawn(1))
        np.testing.assert_allclose(scores.log_probs, before[:1], rtol=TOLERANCE)
        assert engine.score(theta, probes, BATCH).log_probs.tobytes() == before.tobytes()


@pytest.mark.parametrize("scope", SCOPES)
def test_the_base_model_gets_no_gradients_and_is_left_as_it_was(scope):
    model = make_model("llama")
    frozen = next(model.parameters()).requires_grad_(False)
    ids = torch.tensor([[2, 9, 30]])
    before = model(ids).logits
    engine = TorchEngine(model, make_spec("llama", scope), PrefixCache(1e8))

    def fails(scores: Scores) -> np.ndarray:
        raise ArithmeticError

    engine.gradient(some_theta(engine), BATCH, drawn(1))
    with pytest.raises(ArithmeticError):
        engine.gradient(some_theta(engine), BATCH, fails)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [p for p in model.parameters() if not p.requires_grad] == [frozen]
    engine.close()
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scope", SCOPES)
def test_half_precision_models_have_nearly_the_gradient_of_fp32(scope, dtype):
    spec = make_spec("llama", scope)
    engine = TorchEngine(make_model("llama").to(dtype), spec, PrefixCache(1e8))
    theta = some_theta(engine)
    _, expected = PlainEngine(make_model("llama"), spec).gradient(theta, BATCH, cotangents(BATCH))
    _, gradient = engine.gradient(theta, BATCH, cotangents(BATCH))
    assert {value.dtype for value in gradient.values()} == {np.dtype(np.float32)}
    error = np.linalg.norm(flat(gradient) - flat(expected)) / np.linalg.norm(flat(expected))
    assert error < (0.1 if dtype == torch.bfloat16 else 0.0125)  # a bit of bf16 is 2^-8, of fp16 2^-11


# ---- counts and memory


def test_a_warm_gradient_is_one_pass_over_the_suffixes():
    engine = make_fast()
    theta = some_theta(engine)
    engine.gradient(theta, BATCH[:2], drawn(1))
    suffixes = 2 + (2 + 1)  # of the second example, the two candidates share a token
    assert (engine.stats.forward_passes, engine.stats.tokens_computed) == (2 + 1, 5 + 4 + suffixes)
    engine.gradient(theta, BATCH[:2], drawn(1))
    assert (engine.stats.forward_passes, engine.stats.tokens_computed) == (2 + 1 + 1, 5 + 4 + 2 * suffixes)
    rows = (5 + 2) + (4 + 3) + (4 + 2)  # what the plain engine computes: a row for each distinct beginning
    assert engine.stats.tokens_reused == 2 * rows - engine.stats.tokens_computed


class _Recorded:
    """The bytes of what autograd's records hold at once, of whatever is not a parameter of the model."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.kept = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.now = self.peak = 0

    def __enter__(self) -> "_Recorded":
        self.hooks = torch.autograd.graph.saved_tensors_hooks(partial(_Held, self), _Held.give)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)


class _Held:
    def __init__(self, record: _Recorded, tensor: torch.Tensor) -> None:
        self.record, self.tensor = record, tensor
        self.bytes = 0 if tensor.untyped_storage().data_ptr() in record.kept else tensor.nbytes
        record.now += self.bytes
        record.peak = max(record.peak, record.now)

    def give(self) -> torch.Tensor:
        return self.tensor

    def __del__(self) -> None:
        self.record.now -= self.bytes


@pytest.mark.parametrize("scope", SCOPES)
def test_what_is_held_for_the_way_back_does_not_grow_with_the_batch(scope):
    engine = make_fast("llama", scope)
    theta, one = some_theta(engine), [BATCH[1]] * 4
    engine.passes.max_tokens = 4 * 3  # suffix tokens of `one`
    engine.plain.max_tokens_per_forward = 8 * 7  # rows of `one`, as long as the longest
    peaks = []
    for batch in (one, one * 5):
        with _Recorded(engine.model) as record:
            engine.gradient(theta, batch, drawn(1))
        assert record.now == 0
        peaks.append(record.peak)
    assert 0 < peaks[1] <= 1.01 * peaks[0]


@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("scope", SCOPES)
def test_what_goes_into_the_head_is_no_slice(make, scope):
    """Of a slice, PyTorch would copy the head's weights for each row, in bfloat16 on a CPU."""
    model = make_model("llama")
    engine = make(model, make_spec("llama", scope))
    contiguous = []
    model.get_output_embeddings().register_forward_hook(
        lambda module, args, output: contiguous.append(args[0].is_contiguous())
    )
    engine.gradient(some_theta(engine), [BATCH[0]] * 3, drawn(1))
    assert contiguous == [True] * len(contiguous)
    assert contiguous


@pytest.mark.parametrize("num_runs", [1, 3])
def test_behind_kept_prompts_nothing_of_their_length_is_held(num_runs):
    """But attention's weights; also where prompts lie in the cache as several runs, since they begin alike."""
    peaks = []
    for length in (2, 40):
        engine = make_fast("llama", cache=PrefixCache(1e8, BLOCK))
        theta, prompt = some_theta(engine), tuple(range(60, 60 + length))
        batch = [Example(prompt, INVOCATION, ((60,), (61,)), 0)]
        others = [Example((*prompt[: BLOCK * n], 70, 71), INVOCATION, ((60,),), 0) for n in range(1, num_runs)]
        engine.score(theta, [AT_THETA], batch + others)
        with _Recorded(engine.model) as record:
            record.kept |= {node.kv.untyped_storage().data_ptr() for node in engine.cache._by_use}
            engine.gradient(theta, batch, drawn(1))
        peaks.append(record.peak)
    assert len(engine.cache._match(prompt)) == num_runs
    weights = 2 * 4 * 2 * 38 * 4  # bytes: two layers' softmax: heads, suffix tokens, prompt tokens more, fp32
    assert peaks[1] - peaks[0] == weights


def test_a_pass_that_is_over_is_let_go():
    """A record that held the pass which holds the record would stay for good."""
    engine = make_fast("llama")
    engine.gradient(some_theta(engine), BATCH, drawn(1))
    gc.collect()
    assert not [held for held in gc.get_objects() if isinstance(held, PromptKV)]


# ---- refused


def test_all_parameters_and_pools_say_why_they_have_no_gradients():
    whole = TorchEngine(make_model("opt"), None)
    assert "all parameters" in (whole.why_not("gradients") or "")
    with pytest.raises(TypeError, match="all parameters"):
        whole.gradient(whole.weights or {}, BATCH, drawn(1))
    pool = EnginePool([PlainEngine(make_model("opt"), make_spec())])
    with pytest.raises(TypeError, match="a pool of engines"):
        pool.gradient({}, BATCH, drawn(1))
    pool.close()


class _Detached(torch.autograd.Function):
    """An operation without a rule for the way back, as a custom kernel is."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()


def test_a_model_without_rules_for_the_way_back_says_so_and_others_can():
    model = make_model("opt")
    assert PlainEngine(make_model("opt"), make_spec()).why_not("gradients") is None
    layer = model.get_submodule("model.decoder.layers.1.fc1")
    layer.register_forward_hook(lambda module, args, output: _Detached.apply(output))
    engine = TorchEngine(model, make_spec(), PrefixCache(1e8))
    counts = vars(engine.stats).copy()
    assert "OPTForCausalLM does not compute gradients" in (engine.why_not("gradients") or "")
    assert vars(engine.stats) == counts


def test_a_layer_that_passes_nothing_back_is_found_though_no_error_says_so():
    model = make_model("llama")
    layer = model.get_submodule("model.layers.1.self_attn.o_proj")
    vars(layer)["forward"] = torch.no_grad()(layer.forward)
    reason = PlainEngine(model, make_spec("llama")).why_not("gradients")
    assert "layers of type Linear pass none back in torch.float32" in (reason or "")


# ---- quantised


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(QUANTIZED[kind]())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.1)
        model.save_pretrained(place / kind)
    return {path.name: str(path) for path in place.iterdir()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scope", SCOPES)
def test_quantised_weights_pass_the_gradient_of_dequantised_ones_or_are_refused(
    folders, kind, quantization, dtype, scope
):
    """bitsandbytes' kernel for nf4 in bfloat16 on some CPUs would say zero and no error."""
    engine = TorchEngine(
        load_model(folders[kind], dtype, "cpu", quantization=quantization), make_spec(kind, scope), PrefixCache(1e8)
    )
    reason = engine.why_not("gradients")
    if dtype == "float32":
        assert reason is None
    elif reason:
        assert reason == "products with weights quantised by bitsandbytes pass no gradients back in bfloat16 here"
        return
    plain = load_model(folders[kind], "float32", "cpu")
    weights = load_model(folders[kind], dtype, "cpu", quantization=quantization).dequantize()
    plain.load_state_dict({name: value.float() for name, value in weights.state_dict().items()}, strict=True)
    theta = some_theta(engine)
    _, expected = PlainEngine(plain, make_spec(kind, scope)).gradient(theta, BATCH, cotangents(BATCH))
    _, gradient = engine.gradient(theta, BATCH, cotangents(BATCH))
    error = np.linalg.norm(flat(gradient) - flat(expected)) / np.linalg.norm(flat(expected))
    # int8 products also round what goes in, to 1/127 of the row's largest: at another point than the reference's.
    assert error < (0.3 if quantization == "int8" else TOLERANCE if dtype == "float32" else 0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_gradient_equals_pefts_on_the_same_quantised_base(folders, kind, quantization, tmp_path: Path):
    """PEFT passes gradients straight through the rounding of int8's inputs too. (Its aLoRA does not train on int8.)"""
    engine = PlainEngine(
        load_model(folders[kind], "float32", "cpu", quantization=quantization), make_spec(kind, "everywhere")
    )
    theta = some_theta(engine)
    assert engine.spec is not None
    save_adapter(tmp_path, theta, engine.spec, folders[kind])
    base = load_model(folders[kind], "float32", "cpu", quantization=quantization)
    reference = PeftModel.from_pretrained(base, tmp_path, is_trainable=True).eval()
    labels = [e.label for e in BATCH]
    mean_loss(candidates_log_probs(reference, BATCH), counts_of(BATCH), labels).backward()
    found = {n.replace(".default", ""): p.grad for n, p in reference.named_parameters() if p.requires_grad}
    expected = {name: array(found[name]) for name in theta}
    _, gradient = engine.gradient(theta, BATCH, cotangents(BATCH))
    if quantization == "nf4":
        assert_close(gradient, expected)
    else:  # a last bit of an input may tip its rounding
        error = np.linalg.norm(flat(gradient) - flat(expected)) / np.linalg.norm(flat(expected))
        assert error < 0.05
