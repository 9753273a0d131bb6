"""The lens: exact where it can be, measured Jacobians against autograd's, fast against plain, and what it refuses."""

import statistics
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.conftest import KINDS_AND_SCOPES, make_model
from tests.gradients import BATCH, ENGINES, INVOCATION, SCOPES, TOLERANCE, assert_close, cotangents, drawn
from tests.test_fast_engine import batches, some_theta
from tests.tiny_models import tiny_model
from zotune.adapter.spec import LoraSpec, tensor_name
from zotune.adapter.start import Start
from zotune.engine.torch.blocks import attention_of, find_blocks, writer_names
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.lens import Lens
from zotune.engine.torch.lens_measuring import measure_lens
from zotune.engine.torch.plain import PlainEngine
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.errors import InputError
from zotune.zo.protocol import Example

WRITERS = {"opt": ("out_proj", "fc2"), "llama": ("o_proj", "down_proj"), "gpt2": ("c_proj",)}
# The modules of the top block that write into the stream.
LAST = {
    "opt": ("model.decoder.layers.1.self_attn.out_proj", "model.decoder.layers.1.fc2"),
    "llama": ("model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj"),
    "gpt2": ("transformer.h.1.attn.c_proj", "transformer.h.1.mlp.c_proj"),
    "qwen2": ("model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj"),
}


LLAMA_ATTENTION = [f"model.layers.{index}.self_attn.o_proj" for index in range(2)]


def model_of(kind: str):
    return tiny_model(kind).eval() if kind == "qwen2" else make_model(kind)


def spec_of(kind: str, scope: str, form: str = "lora") -> LoraSpec:
    return LoraSpec(4, 8.0, WRITERS.get(kind, WRITERS["llama"]), SCOPES[scope], peft_type=form)


def give(engine, lens: Lens):
    if tensors := lens.tensors():
        engine.layers.start_from(Start.of(tensors))
    engine.layers.lens = lens
    return engine


def none(engine) -> Lens:
    """Nothing goes back through attention; its own last module is reached."""
    blocks = find_blocks(engine.model)
    width = next(iter(engine.model.get_output_embeddings().parameters())).shape[1]
    inside = {id(module) for block in blocks for module in attention_of(block).modules()}
    return Lens(
        {index: (torch.zeros(width, width),) for index in range(len(blocks))},
        {name: () for name, module in engine.layers.modules.items() if id(module) in inside},
    )


# ---- where it is exact


@pytest.mark.parametrize(
    "kind", [*LAST, "mixtral", "gpt_neox", "gemma2", "gpt_oss", "phi3", "qwen3", "olmo2", "starcoder2"]
)
@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_in_scope_activated_the_gradient_is_exact(make, kind):
    """Whatever attention has beside attention: rotations, norms, sliding windows, sinks, a cap on scores. A and B."""
    model: Any = model_of(kind) if kind in LAST else tiny_model(kind).eval()
    engine = make(model, LoraSpec(4, 8.0, writer_names(model), INVOCATION))
    lens = measure_lens(engine, BATCH, seed=0)
    assert not lens.through
    give(engine, lens)
    theta = some_theta(engine)
    _, gradient = engine.lens_gradient(theta, BATCH, cotangents(BATCH))
    _, expected = engine.gradient(theta, BATCH, cotangents(BATCH))
    assert_close(gradient, expected, 1e-4)


@pytest.mark.parametrize("form", ["lora", "lora_fa"])
@pytest.mark.parametrize("kind", LAST)
@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_all_linear_modules_are_reached_exactly(make, kind, form):
    engine = make(model_of(kind), LoraSpec(4, 8.0, ("all-linear",), INVOCATION, peft_type=form))
    give(engine, measure_lens(engine, BATCH, seed=0))
    theta = some_theta(engine)
    _, gradient = engine.lens_gradient(theta, BATCH, cotangents(BATCH))
    _, expected = engine.gradient(theta, BATCH, cotangents(BATCH))
    assert_close(gradient, expected, 1e-4)


@pytest.mark.parametrize("kind", LAST)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_gradients_of_the_last_block_are_autograds(make, scope, kind):
    """Several candidates of several tokens; the other way is backpropagation, which tests/test_gradient.py holds to
    autograd on PEFT. In scope everywhere only scored tokens reach the last block's gradient, too."""
    engine = make(model_of(kind), spec_of(kind, scope))
    give(engine, none(engine))
    theta = some_theta(engine)
    assert engine.why_not("lens") is None
    scores, gradient = engine.lens_gradient(theta, BATCH, cotangents(BATCH))
    expected_scores, expected = engine.gradient(theta, BATCH, cotangents(BATCH))
    names = [tensor_name(module, part) for module in LAST[kind] for part in ("A", "B")]
    assert_close({name: gradient[name] for name in names}, {name: expected[name] for name in names})
    np.testing.assert_allclose(scores.log_probs, expected_scores.log_probs, rtol=TOLERANCE, atol=TOLERANCE)
    assert list(gradient) == list(engine.tensor_shapes)


@pytest.mark.parametrize("kind", [*LAST, "mixtral", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_where_attention_gives_nothing_every_block_is_exact(make, scope, kind):
    """Whatever norms, experts and residual connections the blocks have, in parallel or one behind the other."""
    model: Any = tiny_model(kind).eval() if kind not in WRITERS else make_model(kind)
    engine = make(model, LoraSpec(4, 8.0, writer_names(model), SCOPES[scope], peft_type="lora_fa"))
    give(engine, none(engine))
    theta = some_theta(engine)
    for block in find_blocks(model):
        last = [name for name in writer_names(model) if name in dict(attention_of(block).named_modules())][-1]
        with torch.no_grad():
            for parameter in attention_of(block).get_submodule(last).parameters():
                parameter.zero_()
    for name in theta:
        if "attn" in name or "attention" in name:
            theta[name][:] = 0
    _, gradient = engine.lens_gradient(theta, BATCH, cotangents(BATCH))
    _, expected = engine.gradient(theta, BATCH, cotangents(BATCH))
    assert_close(gradient, expected, 1e-4)


class Uniform(nn.Module):
    """In place of what makes a block of OPT depend on its state otherwise than linearly."""

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return state


def linear_model():
    """Blocks that are linear in the state of a token, whatever stands before it: attention looks at all alike."""
    model = make_model("opt")
    blocks: list[Any] = find_blocks(model)
    for block in blocks:
        block.self_attn_layer_norm = block.final_layer_norm = block.activation_fn = Uniform()
        with torch.no_grad():
            block.self_attn.q_proj.weight.zero_()
            block.self_attn.q_proj.bias.zero_()
            for parameter in block.parameters():
                parameter.mul_(0.3)
    return model


LINEAR_BATCH = [  # of equal lengths, which how much attention gives to each token depends on
    Example((2, 3, 4, 5), (50,), ((60,), (61,)), 0),
    Example((7, 8, 9, 2), (50,), ((60,), (61,)), 1),
    Example((6, 6, 3, 9), (50,), ((60,), (61,)), 1),
]


@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_a_measured_lens_gives_the_exact_gradient_of_a_linear_model(make):
    """Every layer, targets inside the blocks too: the Jacobians are the same for all examples."""
    spec = LoraSpec(4, 8.0, ("out_proj", "fc2", "v_proj", "fc1"), (50,), peft_type="lora_fa")
    engine = make(linear_model(), spec)
    give(engine, measure_lens(engine, LINEAR_BATCH, seed=0, everywhere=True))
    theta = {name: np.zeros(shape, np.float32) for name, shape in engine.tensor_shapes.items()}
    _, gradient = engine.lens_gradient(theta, LINEAR_BATCH, cotangents(LINEAR_BATCH))
    _, expected = engine.gradient(theta, LINEAR_BATCH, cotangents(LINEAR_BATCH))
    for name, value in expected.items():
        np.testing.assert_allclose(gradient[name], value, rtol=0, atol=2e-3 * np.abs(value).max(), err_msg=name)


# ---- measured, against autograd


@pytest.mark.parametrize("kind", WRITERS)
def test_a_measured_lens_is_nearer_to_the_gradient_than_none(kind):
    engine = TorchEngine(make_model(kind), spec_of(kind, "activated", "lora_fa"), PrefixCache(1e8))
    theta = {name: np.zeros(shape, np.float32) for name, shape in engine.tensor_shapes.items()}
    cosines = {}
    for name, lens in (("none", none(engine)), ("measured", measure_lens(engine, BATCH, seed=0, everywhere=True))):
        _, gradient = give(engine, lens).lens_gradient(theta, BATCH, cotangents(BATCH))
        _, expected = engine.gradient(theta, BATCH, cotangents(BATCH))
        cosines[name] = statistics.mean([cosine(gradient[part], expected[part]) for part in expected])
    assert cosines["measured"] > max(0.6, cosines["none"])


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float((first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum()))


# ---- fast and plain


@pytest.fixture(scope="module", params=[*KINDS_AND_SCOPES, pytest.param(None, id="measured")])
def pair(request):
    kind, scope = request.param or ("llama", "activated")
    fast, plain = (make(make_model(kind), spec_of(kind, scope)) for make in (ENGINES["torch"], ENGINES["plain"]))
    lens = measure_lens(fast, BATCH, seed=0, everywhere=request.param is None)
    return give(fast, lens), give(plain, lens), some_theta(plain)


@settings(max_examples=20)
@given(batch=batches(), seed=st.integers(0, 99))
def test_fast_equals_plain(pair, batch, seed):
    fast, plain, theta = pair
    (scores, gradient), (whole, expected) = (
        engine.lens_gradient(theta, batch, drawn(seed)) for engine in (fast, plain)
    )
    np.testing.assert_allclose(scores.log_probs, whole.log_probs, rtol=TOLERANCE, atol=TOLERANCE)
    for name, value in expected.items():
        np.testing.assert_allclose(gradient[name], value, rtol=0, atol=1e-4 * max(1e-3, np.abs(value).max()))


@pytest.mark.parametrize("scope", SCOPES)
def test_the_two_engines_measure_the_same_lens(scope):
    fast, plain = (make(make_model("llama"), spec_of("llama", scope)) for make in (ENGINES["torch"], ENGINES["plain"]))
    first, second = (measure_lens(engine, BATCH, seed=0, everywhere=True) for engine in (fast, plain))
    assert first.within == second.within == dict.fromkeys(LLAMA_ATTENTION, ())
    for index, factors in first.through.items():
        for matrix, expected in zip(factors, second.through[index], strict=True):
            np.testing.assert_allclose(matrix, expected, rtol=0, atol=1e-3, err_msg=str(index))


def test_examples_that_are_computed_in_several_passes_give_the_same():
    engine = ENGINES["torch"](make_model("llama"), spec_of("llama", "activated"))
    give(engine, none(engine))
    theta = some_theta(engine)
    _, expected = engine.lens_gradient(theta, BATCH, cotangents(BATCH))
    engine.passes.max_tokens = 1
    _, gradient = engine.lens_gradient(theta, BATCH, cotangents(BATCH))
    assert_close(gradient, expected)


def test_a_step_is_one_forward_pass():
    engine = ENGINES["torch"](make_model("llama"), spec_of("llama", "activated"))
    give(engine, none(engine))
    theta = some_theta(engine)
    engine.lens_gradient(theta, BATCH, cotangents(BATCH))
    before = engine.stats.forward_passes
    engine.lens_gradient(theta, BATCH, cotangents(BATCH))
    assert engine.stats.forward_passes == before + 1


# ---- structure, and what is refused


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("opt", {"out_proj", "fc2"}), ("gpt2", {"c_proj"}), ("llama", {"o_proj", "down_proj"}),
        ("phi3", {"o_proj", "down_proj"}), ("gpt_neox", {"dense", "dense_4h_to_h"}), ("mixtral", {"o_proj"}),
        ("roberta", {"output.dense"}),
    ],
)  # fmt: skip
def test_modules_that_write_into_the_stream_are_found_by_structure(kind, names):
    assert set(writer_names(tiny_model(kind))) == names
    assert set(writer_names(tiny_model(kind), within_parts=True)) == names - {"fc2"}


def test_a_model_whose_blocks_do_not_follow_each_other_is_refused():
    model = make_model("llama")
    engine = PlainEngine(model, spec_of("llama", "activated"))
    handle = model.model.layers[1].register_forward_pre_hook(
        lambda module, args: (args[0] * 1.5, *args[1:]), prepend=True
    )
    with pytest.raises(InputError, match=r"has no lens .*a block does not give what the next one takes"):
        measure_lens(engine, BATCH, seed=0)
    handle.remove()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("marian", "2 modules of attention, instead of one"), ("hy_v4", "is not one vector a token"),
        ("roberta", "lm_head.dense lies outside its blocks"),
    ],
)  # fmt: skip
def test_models_of_another_form_are_refused_with_the_reason(kind, reason):
    model = tiny_model(kind).eval()
    modules = ("dense",) if kind == "roberta" else writer_names(model)
    engine = TorchEngine(model, LoraSpec(4, 8.0, modules, INVOCATION, peft_type="lora_fa"))
    with pytest.raises(InputError, match=rf"{type(model).__name__} has no lens .*{reason}"):
        measure_lens(engine, BATCH, seed=0)


def test_only_loras_matrices_have_a_lens():
    engine = PlainEngine(make_model("llama"), LoraSpec(4, 8.0, WRITERS["llama"], INVOCATION, peft_type="vera"))
    assert "--tuning lora or lora_fa" in str(engine.why_not("lens"))
