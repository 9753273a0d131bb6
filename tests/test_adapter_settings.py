"""Adapters that PEFT made, by every setting that changes numbers: read with PEFT's own scores, or refused in one
sentence that names the setting."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, MixtralConfig, PhimoeConfig, PreTrainedModel

from tests.conftest import make_model
from zotune.adapter.peft_files import load_adapter, save_adapter
from zotune.adapter.peft_settings import _LORA, _SHARED, read_settings
from zotune.adapter.spec import LoraSpec
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.plain import PlainEngine
from zotune.errors import InputError
from zotune.zo.protocol import AT_THETA, Engine, Example, Probe, Theta

TOLERANCE = 1e-4  # of fp32, over the few layers of a tiny model
EXAMPLES = [
    Example((1, 9, 30, 41), (50, 51), ((60,), (61, 62, 63)), 0), Example((1, 12), (50, 51), ((70, 71), (72,)), 1)
]  # fmt: skip


def scores_of(engine: Engine, theta: Theta) -> np.ndarray:
    scores = engine.score(theta, [AT_THETA], EXAMPLES)
    return scores.log_probs[0][scores.num_tokens > 0]


@torch.no_grad()
def peft_scores(model: Any) -> np.ndarray:
    """One row at a time, without padding and without a cache."""
    found = []
    for example in EXAMPLES:
        for candidate in example.candidates:
            ids = example.prompt + example.invocation + candidate
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)
            found.append(sum(float(logits[i - 1, ids[i]]) for i in range(len(ids) - len(candidate), len(ids))))
    return np.array(found)


def peft_adapter(folder: Path, kind: str = "llama", **settings: Any) -> Path:
    """An adapter of PEFT in which no tensor is zero."""
    torch.manual_seed(1)
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(make_model(kind), LoraConfig(**config))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(std=0.3)
        model.save_pretrained(str(folder))
    return folder


def loaded_by_peft(folder: Path, model: PreTrainedModel) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model, folder).eval()


READ: dict[str, dict[str, Any]] = {
    "names": {},
    "the whole name of a module": {"target_modules": ["model.layers.1.self_attn.q_proj"]},
    "a name that is not there": {"target_modules": ["q_proj", "query"]},
    "a regular expression": {"target_modules": r".*\.(0|1)\.(self_attn\.k|mlp\.down)_proj"},
    "all-linear": {"target_modules": "all-linear"},
    "all-linear in capitals": {"target_modules": "ALL-LINEAR"},
    "all-linear but some": {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
    "one layer": {"layers_to_transform": 1},
    "some layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "names left out": {"exclude_modules": ["layers.0.self_attn.q_proj", "v_proj"]},
    "an expression left out": {"exclude_modules": r".*\.0\..*"},
    "ranks": {"rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 7}},
    "alphas": {"alpha_pattern": {"v_proj": 3, r".*\.1\.self_attn\.q_proj": 0.5}},
    "ranks and alphas": {"rank_pattern": {"^model.layers.0.self_attn.q_proj": 1}, "alpha_pattern": {"1.*q_proj": 1}},
    "rslora": {"use_rslora": True},
    "rslora with ranks": {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "a start that leaves the base model": {"init_lora_weights": "gaussian"},
    "an orthogonal start": {"init_lora_weights": "orthogonal"},
    "no task": {"task_type": None},
    "dropout": {"lora_dropout": 0.5},
    "an alpha with a fraction": {"lora_alpha": 2.5},
    "no scale": {"lora_alpha": 0},
    "activated": {"alora_invocation_tokens": [50, 51]},
    "activated, with ranks and alphas": {
        "alora_invocation_tokens": [50, 51],
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {r".*\.0\..*v_proj": 3},
        "layers_to_transform": [0, 1],
    },
}
READ_GPT2: dict[str, dict[str, Any]] = {
    "said of Conv1D": {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
    "not said of Conv1D": {"target_modules": r".*attn\.c_(attn|proj)", "fan_in_fan_out": False},
}
CASES = [("llama", name, settings) for name, settings in READ.items()] + [
    ("gpt2", name, settings) for name, settings in READ_GPT2.items()
]


@pytest.mark.parametrize(("kind", "name", "settings"), CASES, ids=[name for _, name, _ in CASES])
def test_an_adapter_has_the_scores_that_it_has_in_peft(tmp_path, kind, name, settings):
    folder = peft_adapter(tmp_path / "theirs", kind, **settings)
    theta, spec = load_adapter(folder)
    expected = peft_scores(loaded_by_peft(folder, make_model(kind)))
    assert np.abs(expected - peft_scores(make_model(kind))).max() > 0.01 or name == "no scale"
    probed = []
    for engine_kind in (PlainEngine, TorchEngine):
        engine = engine_kind(make_model(kind), spec)
        probed.append(engine.score(theta, [AT_THETA, Probe(1, 0.1), Probe(2, -0.1)], EXAMPLES).log_probs)
        assert engine.tensor_shapes == {tensor: value.shape for tensor, value in theta.items()}
        np.testing.assert_allclose(scores_of(engine, theta), expected, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(probed[0], probed[1], rtol=TOLERANCE, atol=TOLERANCE)
    save_adapter(tmp_path / "ours", theta, spec, "none")
    np.testing.assert_allclose(
        peft_scores(loaded_by_peft(tmp_path / "ours", make_model(kind))), expected, rtol=TOLERANCE, atol=TOLERANCE
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_an_adapter_in_another_precision_has_the_scores_that_it_has_in_peft(tmp_path, dtype):
    from safetensors.torch import load_file, save_file

    file = peft_adapter(tmp_path) / "adapter_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    theta, spec = load_adapter(tmp_path)
    expected = peft_scores(loaded_by_peft(tmp_path, make_model("llama")))
    np.testing.assert_allclose(scores_of(PlainEngine(make_model("llama"), spec), theta), expected, atol=TOLERANCE)


def test_an_adapter_that_peft_converted_from_pissa_is_read(tmp_path):
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights="pissa", task_type="CAUSAL_LM")
    model = get_peft_model(make_model("llama"), config)
    config.init_lora_weights = True  # as PEFT's documentation has it
    model.save_pretrained(str(tmp_path / "start"))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    expected = peft_scores(model.eval())
    model.save_pretrained(str(tmp_path / "end"), path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    theta, spec = load_adapter(tmp_path / "end")
    np.testing.assert_allclose(scores_of(PlainEngine(make_model("llama"), spec), theta), expected, atol=1e-3)


REFUSED: dict[str, Any] = {
    "use_dora": True,
    "lora_bias": True,
    "trainable_token_indices": [5],
    "modules_to_save": ["lm_head"],
    "bias": "lora_only",
    "init_lora_weights": "olora",
    "layer_replication": [[0, 2], [1, 2]],
}


@pytest.mark.parametrize(("setting", "value"), REFUSED.items(), ids=str)
def test_a_setting_of_peft_that_zotune_has_not_is_refused_by_name(tmp_path, setting, value):
    peft_adapter(tmp_path, **{setting: value})
    with pytest.raises(InputError, match=rf"--adapter: \S+/adapter_config\.json has {setting} .*: [^\n]+$"):
        load_adapter(tmp_path)


PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
UNKNOWN = [f.name for f in dataclasses.fields(LoraConfig) if f.name not in _LORA | _SHARED]


@pytest.mark.parametrize("setting", [*UNKNOWN, "a_setting_of_next_year"])
def test_what_is_not_known_is_refused_unless_it_is_off(setting):
    unset: list[Any] = [None, False, [], {}]
    for off in unset:
        assert read_settings(PLAIN | {setting: off}, "A") == LoraSpec(4, 8, ("q_proj",))
    for on in (True, ["x"], {"x": 1}, 16):
        with pytest.raises(InputError, match=f"^--adapter: A has {setting} "):
            read_settings(PLAIN | {setting: on}, "A")


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "mica", "x", 3])
def test_a_start_that_moves_the_base_model_is_refused(start):
    with pytest.raises(InputError, match=f"A has init_lora_weights '?{start}'?: PEFT moves the base model's weights"):
        read_settings(PLAIN | {"init_lora_weights": start}, "A")


def test_the_settings_that_peft_writes_by_default_are_read():
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"]).to_dict()
    assert read_settings(json.loads(json.dumps(config, default=list)), "A") == LoraSpec(4, 8, ("q_proj",))


WRONG: dict[str, list[Any]] = {
    "r": [None, 0, -1, 2.5, "4", True, [4], 1 << 31, 1 << 5000],
    "lora_alpha": [None, "16", True, float("nan"), float("inf"), [1], 10**400],
    "target_modules": [None, [], "", 3, [3], ["q_proj", None], {"q_proj": 1}, "(", [""], ["all-linear"]],
    "exclude_modules": [3, [3], "("],
    "layers_to_transform": ["1", [1.5], [-1], True, {"1": 1}],
    "layers_pattern": ["layers", 3],  # without layers_to_transform
    "rank_pattern": [["q_proj"], {"q_proj": 0}, {"q_proj": "4"}, {"(": 4}],
    "alpha_pattern": [3, {"q_proj": None}, {"q_proj": float("nan")}],
    "use_rslora": ["yes", 1],
    "fan_in_fan_out": ["yes"],
    "alora_invocation_tokens": [[], "It", 7, [1.5], [-1], [True], [1 << 31], [10**30]],
    "bias": ["all", True],
    "peft_type": [None, "IA3", "ADALORA", "LOHA", "LOKR", "VERA", "lora", 3, ["LORA"]],
}


@pytest.mark.parametrize("setting", WRONG)
def test_a_setting_of_a_wrong_kind_is_refused_by_name(setting):
    for value in WRONG[setting]:
        with pytest.raises(InputError, match=rf"^--adapter: A has (no )?{setting}[^\n]*$"):
            read_settings(PLAIN | {setting: value}, "A")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_virtual_tokens": 0}, "has num_virtual_tokens 0"),
        ({"num_virtual_tokens": None}, "has no num_virtual_tokens"),
        ({"num_virtual_tokens": 4, "num_transformer_submodules": 2}, "has num_transformer_submodules 2"),
        ({"num_virtual_tokens": 4, "modules_to_save": ["lm_head"]}, "has modules_to_save"),
    ],
)
def test_settings_of_a_soft_prompt_are_refused_by_name(settings, message):
    with pytest.raises(InputError, match=message):
        read_settings({"peft_type": "PROMPT_TUNING"} | settings, "A")


# ---- modules that PEFT takes for something else


def mixture(kind: str) -> PreTrainedModel:
    shape: dict[str, Any] = {
        "vocab_size": 320, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
    }  # fmt: skip
    latent: dict[str, Any] = {
        "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
        "v_head_dim": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1,
        "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1,
    }  # fmt: skip
    config: Any = {
        "mixtral": lambda: MixtralConfig(**shape, num_local_experts=4),
        "phimoe": lambda: PhimoeConfig(**shape, num_local_experts=4),
        "deepseek_v2": lambda: AutoConfig.for_model("deepseek_v2", **shape | latent),
        "mamba": lambda: AutoConfig.for_model("mamba", **shape, state_size=4, time_step_rank=4),
        "falcon": lambda: AutoConfig.for_model("falcon", **shape, multi_query=True),
    }[kind]()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "left_out"),
    [
        ("mixtral", "the fused experts and their router"),
        ("phimoe", "router"),
        ("deepseek_v2", "down_proj, gate_proj, up_proj, the fused experts and their router"),
        ("mamba", "out_proj"),
        ("falcon", None),  # whose linear modules are a class of its own
    ],
)
def test_all_linear_is_exported_so_that_peft_adapts_the_same_modules(tmp_path, caplog, kind, left_out):
    caplog.set_level("INFO", logger="zotune")
    engine = PlainEngine(mixture(kind), LoraSpec(2, 4.0, ("all-linear",)))
    said = [record.getMessage() for record in caplog.records if "all-linear" in record.getMessage()]
    assert [message.partition("without ")[2] for message in said] == ([left_out] if left_out else [])
    theta, _ = engine.layers.trial()
    assert engine.spec
    save_adapter(tmp_path, theta, engine.spec, "none")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys")
        reference = PeftModel.from_pretrained(mixture(kind), tmp_path).eval()
    expected = peft_scores(reference)
    assert np.abs(expected - peft_scores(mixture(kind))).max() > 0.01
    np.testing.assert_allclose(scores_of(engine, theta), expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert PlainEngine(mixture(kind), load_adapter(tmp_path)[1]).tensor_shapes == engine.tensor_shapes


@pytest.mark.parametrize(
    ("kind", "targets", "message"),
    [
        ("phimoe", ("router",), r"layers\.0\.mlp\.router .* gives more than a product"),
        ("deepseek_v2", ("q_a_proj", "gate_proj"), "PEFT reads as that of fused experts"),
        ("mamba", ("in_proj", "out_proj"), "Mamba's kernels"),
        ("llama", ("q_proj", "lm_head"), "is the output layer"),
        ("llama", ("q_proj", "embed_tokens"), "is a Embedding; only linear"),
        ("llama", ("self_attn",), "is a LlamaAttention; only linear"),
        ("llama", ("query", "key"), "'query' matches no linear module"),
        ("llama", ("all-linear", "key"), "'all-linear' matches no linear module"),
        ("llama", "q_proj", "'q_proj' matches the whole name of no module"),  # PEFT takes a text for an expression
    ],
)
def test_a_target_that_cannot_be_adapted_is_refused_in_one_sentence(kind, targets, message):
    model = make_model(kind) if kind == "llama" else mixture(kind)
    with pytest.raises(InputError, match=rf"^--target-modules: [^\n]*{message}"):
        PlainEngine(model, LoraSpec(2, 4.0, targets))
