"""The digest of base weights: other weights have another, and what leaves the weights alone leaves the digest."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from tests.conftest import TARGETS, make_model
from tests.test_estimators import BATCH
from tests.test_fast_engine import some_theta
from zotune.adapter.spec import AdapterSpec, LoraSpec, PromptSpec
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.identity import SMALL, weights_identity
from zotune.engine.torch.loading import load_model
from zotune.engine.torch.plain import PlainEngine
from zotune.zo.estimators import Spsa
from zotune.zo.optimizers import InPlace, Sgd
from zotune.zo.protocol import AT_THETA, Probe
from zotune.zo.updates import Slopes

ENGINES: dict[str, Any] = {"plain": PlainEngine, "torch": TorchEngine}
DTYPES = [torch.float32, torch.bfloat16]
ROWS = 320
SPECS: dict[str, AdapterSpec | None] = {
    "lora": LoraSpec(4, 8.0, TARGETS["opt"], None),
    "activated lora": LoraSpec(4, 8.0, TARGETS["opt"], BATCH[0].invocation),
    "soft prompt": PromptSpec(3),
    "all parameters": None,
}
LLAMA = LoraSpec(4, 8.0, TARGETS["llama"], None)


def make_wide(seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Its embedding is so large that a sample of it is read."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=ROWS, hidden_size=128, intermediate_size=192, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=1, tie_word_embeddings=True,
    )  # fmt: skip
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    assert embedding(model).nbytes > SMALL
    return model


def embedding(model: PreTrainedModel) -> torch.Tensor:
    weight: Any = model.get_input_embeddings().weight
    values: torch.Tensor = weight.detach()  # shares its memory
    return values


def one_number(model: PreTrainedModel) -> None:
    """Tensors that are small are read whole."""
    weight: Any = model.get_submodule("model.norm").weight
    weight.detach()[17] += 1


def one_name(model: PreTrainedModel) -> None:
    block = model.get_submodule("model.layers.0.mlp")
    block.projection = block.down_proj
    del block.down_proj


def one_dtype(model: PreTrainedModel) -> None:
    model.get_submodule("model.layers.0.mlp.down_proj").half()


def one_shape(model: PreTrainedModel) -> None:
    layer: Any = model.get_submodule("model.layers.0.mlp.down_proj")
    layer.weight = torch.nn.Parameter(layer.weight.detach().reshape(layer.weight.shape[::-1]))


def two_tensors(model: PreTrainedModel) -> None:
    block = model.get_submodule("model.layers.0.mlp")
    block.up_proj, block.gate_proj = block.gate_proj, block.up_proj


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_weights_have_the_same_digest_and_another_seeds_have_another(dtype):
    assert weights_identity(make_wide(0, dtype)) == weights_identity(make_wide(0, dtype))
    assert len({weights_identity(make_wide(seed, dtype)) for seed in range(5)}) == 5


@pytest.mark.parametrize("change", [one_number, one_name, one_dtype, one_shape, two_tensors])
def test_one_change_gives_another_digest(change: Callable[[PreTrainedModel], None]):
    model = make_wide()
    before = weights_identity(model)
    change(model)
    assert weights_identity(model) != before


@settings(max_examples=30)
@given(rows=st.lists(st.integers(0, ROWS - 1), min_size=2, max_size=2, unique=True))
@pytest.mark.parametrize("dtype", DTYPES)
def test_two_swapped_rows_give_another_digest(dtype, rows):
    model = make_wide(dtype=dtype)
    before = weights_identity(model)
    weight = embedding(model)
    weight[rows] = weight[rows[::-1]]
    assert weights_identity(model) != before


@settings(max_examples=30)
@given(columns=st.lists(st.integers(0, 127), min_size=2, max_size=2, unique=True))
def test_two_swapped_columns_give_another_digest(columns):
    model = make_wide()
    before = weights_identity(model)
    weight = embedding(model)
    weight[:, columns] = weight[:, columns[::-1]]
    assert weights_identity(model) != before


@pytest.mark.parametrize("kind", [*TARGETS, "wide"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_saving_and_loading_keep_it(kind, dtype, tmp_path):
    model = make_wide(dtype=dtype) if kind == "wide" else make_model(kind).to(dtype)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert weights_identity(loaded) == weights_identity(model)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_an_engine_says_its_models_whatever_it_trains(make, spec):
    """LoRA's hooks, forward passes, and soft prompts in place of an embedding change nothing."""
    expected = weights_identity(make_model("opt"))
    engine = make(make_model("opt"), spec)
    theta = engine.weights or some_theta(engine)
    if spec != SPECS["soft prompt"]:  # whose examples begin with its own tokens
        engine.score(theta, [AT_THETA, Probe(1, 0.1)], BATCH)
    assert weights_identity(engine.model) == expected
    assert engine.identity() == expected
    engine.close()
    assert weights_identity(engine.model) == expected


@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_after_steps_of_all_parameters_it_is_still_the_one_that_the_run_began_with(make):
    engine = make(make_model("opt"), None)
    optimizer = InPlace(Sgd())
    slopes = Spsa(1e-2).tell(Spsa(1e-2).ask([5]), np.array([[1.0], [0.0]]))
    optimizer.update(engine.weights, {}, Slopes(tuple(slopes)), 1e-2)
    assert weights_identity(engine.model) != weights_identity(make_model("opt"))
    assert engine.identity() == weights_identity(make_model("opt"))


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_quantised_weights_keep_it_though_a_pass_packs_them_anew(make, dtype, quantization, tmp_path):
    make_wide().save_pretrained(tmp_path)
    expected = weights_identity(load_model(str(tmp_path), dtype, "cpu", quantization=quantization))
    engine = make(load_model(str(tmp_path), dtype, "cpu", quantization=quantization), LLAMA)
    engine.score(some_theta(engine), [AT_THETA], BATCH)
    assert engine.identity() == expected
    assert weights_identity(engine.model) in (None, expected)  # None where this processor has a packed form
