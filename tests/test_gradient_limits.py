"""What a gradient costs and keeps, which engines and models have none, and that of quantised weights."""

import gc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel

from tests.conftest import make_model
from tests.gradients import (
    BATCH,
    ENGINES,
    INVOCATION,
    SCOPES,
    TOLERANCE,
    array,
    assert_close,
    candidates_log_probs,
    cotangents,
    counts_of,
    drawn,
    flat,
    make_fast,
    make_spec,
    mean_loss,
)
from tests.test_fast_engine import BLOCK, some_theta
from tests.test_quantized import CONFIGS as QUANTIZED
from tests.test_quantized import KINDS
from zotune.adapter.peft_files import save_adapter
from zotune.engine.pool import EnginePool
from zotune.engine.torch.attention import PromptKV
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.loading import load_model
from zotune.engine.torch.plain import PlainEngine
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.zo.protocol import AT_THETA, Example

# ---- counts and memory


def test_a_warm_gradient_is_one_pass_over_the_suffixes():
    engine = make_fast()
    theta = some_theta(engine)
    engine.gradient(theta, BATCH[:2], drawn(1))
    suffixes = 2 + (2 + 1)  # of the second example, the two candidates share a token
    assert (engine.stats.forward_passes, engine.stats.tokens_computed) == (1 + 1, 5 + 4 + suffixes)
    engine.gradient(theta, BATCH[:2], drawn(1))
    assert (engine.stats.forward_passes, engine.stats.tokens_computed) == (1 + 1 + 1, 5 + 4 + 2 * suffixes)
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
@pytest.mark.slow
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
    reference, errors = PlainEngine(plain, make_spec(kind, scope)), []
    for scale in (1.0, 1.02, 1.04, 1.06, 1.08):
        theta = {name: np.float32(scale) * value for name, value in some_theta(engine).items()}
        _, expected = reference.gradient(theta, BATCH, cotangents(BATCH))
        _, gradient = engine.gradient(theta, BATCH, cotangents(BATCH))
        errors.append(np.linalg.norm(flat(gradient) - flat(expected)) / np.linalg.norm(flat(expected)))
    # In bfloat16 one of OPT's ReLUs may open that is shut in float32, or the other way round: at such a theta the error
    # of the same weights without quantisation is as large. int8 products also round what goes in, to 1/127 of the
    # row's largest: at another point than the reference's.
    usual = np.median if dtype == "bfloat16" else np.max
    assert usual(errors) < (0.3 if quantization == "int8" else TOLERANCE if dtype == "float32" else 0.1)


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
