"""Base models that bitsandbytes quantises: trained, evaluated, exported and resumed, on a CPU."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from transformers import BitsAndBytesConfig, LlamaConfig, OPTConfig

from tests.conftest import CONTEXT, REVIEWS, VOCABULARY, make_tokenizer
from tests.processes import run_to_end
from tests.test_engine import INVOCATION, naive_log_prob, some_theta
from zotune import InputError, evaluate, mezo_finetune, resume
from zotune.adapter.peft_files import load_adapter, save_adapter
from zotune.adapter.spec import LoraSpec
from zotune.cli import main
from zotune.config.reading import make_config, read_toml
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.loading import load_model
from zotune.engine.torch.plain import PlainEngine
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.engine.torch.quantization import keep_dtype
from zotune.finetune import make_trainer
from zotune.inference import _config
from zotune.run.journal import read_journal
from zotune.zo.protocol import AT_THETA, Example, Probe

KINDS, BITS = ("opt", "llama"), (4, 8)
NAMES = {4: "nf4", 8: "int8"}
TARGETS = ("q_proj", "v_proj")
EPSILON = 1e-2
TOLERANCE = 1e-5  # fp32 sums of up to 3 log-probabilities of size 10, in another order of operations
SLOPE_TOLERANCE = 2 * TOLERANCE * 10 / (2 * EPSILON)  # two scores of size 10, over 2 eps: 0.01 where slopes are about 5

# nf4 has a scale for every 64 weights: no layer is narrower.
CONFIGS = {
    "opt": lambda: OPTConfig(
        vocab_size=VOCABULARY, hidden_size=64, word_embed_proj_dim=64, ffn_dim=128, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=CONTEXT, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    ),
    "llama": lambda: LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Models in full precision with their tokenizer, and `opt-4`, an OPT that is kept quantised."""
    place = tmp_path_factory.mktemp("models")
    for kind, make in CONFIGS.items():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(make())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.1)
        model.save_pretrained(place / kind)
        make_tokenizer().save_pretrained(place / kind)
    load_model(str(place / "opt"), "float32", "cpu", quantization="nf4").save_pretrained(place / "opt-4")
    make_tokenizer().save_pretrained(place / "opt-4")
    return {path.name: str(path) for path in place.iterdir()}


def batch() -> list[Example]:
    """Rows of several lengths that begin alike in part, with candidates of one to three tokens."""
    rng = np.random.default_rng(0)
    prompts = [(1, *range(60, 72), *map(int, rng.integers(60, VOCABULARY, size))) for size in (3, 20, 9, 14)]
    return [Example(prompt, INVOCATION, ((70,), (71, 72), (71, 73, 74)), 0) for prompt in prompts]


def slopes(engine: PlainEngine | TorchEngine) -> tuple[np.ndarray, np.ndarray]:
    """Scores at theta, and of each candidate its slope along four directions."""
    theta = some_theta(engine)
    probes = [Probe(seed, distance) for seed in range(4) for distance in (EPSILON, -EPSILON)]
    scores = engine.score(theta, [AT_THETA, *probes], batch()).log_probs
    return scores[0], (scores[1::2] - scores[2::2]) / (2 * EPSILON)


def zotune(*arguments: str, cwd: Path) -> None:
    done = run_to_end(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "MatMul8bitLt" not in done.stderr  # a line for every product


# ---- the engines


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bits", "layer"), [(4, "Linear4bit"), (8, "Linear8bitLt")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_linear_layers_but_the_head_are_quantised_and_the_rest_has_the_dtype(folders, kind, bits, layer, dtype):
    model = load_model(folders[kind], dtype, "cpu", quantization=NAMES[bits])
    linear = {name: type(m).__name__ for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert linear.pop("lm_head") == "Linear"
    assert set(linear.values()) == {layer}
    assert str(model.dtype) == f"torch.{dtype}"
    assert not model.training
    engine = TorchEngine(model, LoraSpec(4, 8.0, TARGETS), PrefixCache(1e8))
    assert engine.score(some_theta(engine), [AT_THETA], batch()).log_probs.dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("scope", ["activated", "everywhere"])
def test_slopes_of_the_fast_engine_equal_the_plain_engines(folders, kind, bits, scope):
    spec = LoraSpec(4, 8.0, TARGETS, INVOCATION if scope == "activated" else None)
    engine = TorchEngine(load_model(folders[kind], "float32", "cpu", quantization=NAMES[bits]), spec, PrefixCache(1e8))
    assert engine.plain_reason is None
    (fast, fast_slopes), (slow, slow_slopes) = slopes(engine), slopes(engine.plain)
    assert np.abs(slow_slopes).max() > 1
    if bits == 8:  # what goes into a product is rounded to 1/127 of the row's largest: a last bit may tip a rounding
        np.testing.assert_allclose(fast, slow, atol=0.05)
        return
    np.testing.assert_allclose(fast, slow, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(fast_slopes, slow_slopes, rtol=0, atol=SLOPE_TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", BITS)
def test_an_adapter_moves_scores_as_on_the_dequantised_weights(folders, kind, bits):
    """The same numbers as on an ordinary model that has the dequantised weights: LoRA does not see the format."""
    quantised = load_model(folders[kind], "float32", "cpu", quantization=NAMES[bits])
    plain = load_model(folders[kind], "float32", "cpu")
    weights = load_model(folders[kind], "float32", "cpu", quantization=NAMES[bits]).dequantize()
    plain.load_state_dict({name: value.float() for name, value in weights.state_dict().items()}, strict=True)
    spec = LoraSpec(4, 8.0, TARGETS, INVOCATION)
    results = [slopes(PlainEngine(model, spec)) for model in (quantised, plain)]
    if bits == 8:  # int8 products also round what goes in
        np.testing.assert_allclose(results[0][0], results[1][0], atol=0.5)
    else:
        np.testing.assert_allclose(results[0][0], results[1][0], rtol=TOLERANCE, atol=TOLERANCE)
        np.testing.assert_allclose(results[0][1], results[1][1], rtol=0, atol=SLOPE_TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", BITS)
def test_scores_equal_peft_on_the_same_quantised_base(folders, kind, bits, tmp_path):
    engine = TorchEngine(
        load_model(folders[kind], "float32", "cpu", quantization=NAMES[bits]),
        LoraSpec(4, 8.0, TARGETS, INVOCATION),
        PrefixCache(1e8),
    )
    theta = some_theta(engine)
    assert engine.spec is not None
    save_adapter(tmp_path, theta, engine.spec, folders[kind])
    reference = PeftModel.from_pretrained(
        load_model(folders[kind], "float32", "cpu", quantization=NAMES[bits]), tmp_path
    ).eval()
    scores = engine.score(theta, [AT_THETA], batch()).log_probs[0]
    expected = [[naive_log_prob(reference, example, c) for c in example.candidates] for example in batch()]
    tolerance = 0.05 if bits == 8 else TOLERANCE  # of int8 as above
    np.testing.assert_allclose(scores, expected, rtol=tolerance if bits == 4 else 0, atol=tolerance)


@pytest.mark.parametrize("bits", BITS)
def test_derivatives_are_refused_and_not_zero(folders, bits):
    """bitsandbytes' operator for nf4 would lose them without an error."""
    engine = PlainEngine(
        load_model(folders["opt"], "float32", "cpu", quantization=NAMES[bits]), LoraSpec(4, 8.0, TARGETS)
    )
    assert "quantised weights (bitsandbytes)" in (engine.why_not("tangents") or "")


# ---- runs


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.slow
def test_the_command_trains_evaluates_and_exports_and_peft_loads_the_adapter(folders, bits, reviews_file, tmp_path):
    zotune(
        "train", "--model", folders["opt"], "--task", "demo", "--train-data", str(reviews_file), "--num-steps", "4",
        "--batch-size", "4", "--eval-steps", "2", "--output-dir", "run", "--num-threads", "1",
        "--quantization", NAMES[bits],        cwd=tmp_path,
    )  # fmt: skip
    config = read_toml(tmp_path / "run" / "config.toml")
    assert config.quantization == NAMES[bits]
    assert config.dtype == "float32"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["tokens_reused"] > 0  # by the fast engine

    # Evaluated on the base as the run had it, which a full-precision one does not equal.
    zotune("evaluate", "--adapter", "run/adapter", "--output-file", "out.json", cwd=tmp_path)
    loss = json.loads((tmp_path / "out.json").read_text())["loss"]
    assert loss == summary["final"]["loss"]
    whole = evaluate(adapter=tmp_path / "run" / "adapter", quantization="none")
    assert whole.loss != loss

    theta, spec = load_adapter(tmp_path / "run" / "adapter")
    engine = PlainEngine(load_model(folders["opt"], "float32", "cpu", quantization=NAMES[bits]), spec)
    example = Example((1, 90, 91, 92), spec.invocation_tokens or (), ((70,), (71, 72)), 0)
    scores = engine.score(theta, [AT_THETA], [example]).log_probs[0, 0]
    loading = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_quant_type="nf4")
    base = transformers.AutoModelForCausalLM.from_pretrained(
        folders["opt"], dtype=torch.float32, quantization_config=loading, device_map="cpu"
    )
    keep_dtype(base, "float32")
    reference = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").eval()
    for score, candidate in zip(scores, example.candidates, strict=True):
        tolerance = 0.05 if bits == 8 else TOLERANCE * abs(float(score))
        assert float(score) == pytest.approx(naive_log_prob(reference, example, candidate), rel=0, abs=tolerance)


@pytest.mark.slow
def test_the_lens_trains_on_a_quantised_base(folders, tmp_path):
    """Nothing of the network is differentiated: its kernels are those of inference."""
    result = mezo_finetune(
        folders["opt"], REVIEWS, REVIEWS, output_dir=str(tmp_path / "run"), quantization="nf4", estimator="lens",
        task="demo", num_steps=20, batch_size=8, eval_steps=20, num_threads=1,
    )  # fmt: skip
    assert result.initial is not None
    assert result.final is not None
    assert result.final.loss < result.initial.loss


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(folders, bits, tmp_path):
    common: dict[str, Any] = {
        "task": "demo", "num_steps": 6, "batch_size": 4, "eval_steps": 3, "num_threads": 1, "quantization": NAMES[bits],
    }  # fmt: skip
    whole = mezo_finetune(folders["opt"], REVIEWS, output_dir=str(tmp_path / "whole"), **common)
    with make_trainer(folders["opt"], REVIEWS, output_dir=str(tmp_path / "cut"), **common) as trainer:
        for _ in range(3):
            trainer.train_step()
    assert len(read_journal(tmp_path / "cut" / "journal.jsonl")[1]) == 3
    resumed = resume(tmp_path / "cut")
    name = "adapter_model.safetensors"
    assert (resumed.adapter / name).read_bytes() == (whole.adapter / name).read_bytes()
    assert resumed.final == whole.final


@pytest.mark.slow
def test_a_folder_that_is_quantised_loads_by_itself(folders, tmp_path):
    common: dict[str, Any] = {"task": "demo", "num_steps": 3, "batch_size": 4, "num_threads": 1}
    kept = mezo_finetune(folders["opt-4"], REVIEWS, output_dir=str(tmp_path / "kept"), **common)
    made = mezo_finetune(folders["opt"], REVIEWS, output_dir=str(tmp_path / "made"), quantization="nf4", **common)
    name = "adapter_model.safetensors"
    assert (kept.adapter / name).read_bytes() == (made.adapter / name).read_bytes()
    assert evaluate(REVIEWS, adapter=kept.adapter) == evaluate(REVIEWS, adapter=made.adapter)


def test_a_loaded_model_that_is_quantised_trains(folders, tmp_path):
    model = load_model(folders["opt"], "float32", "cpu", quantization="nf4")
    common: dict[str, Any] = {"task": "demo", "num_steps": 3, "batch_size": 4, "num_threads": 1}
    given = mezo_finetune(model, REVIEWS, output_dir=str(tmp_path / "given"), **common)
    made = mezo_finetune(folders["opt"], REVIEWS, output_dir=str(tmp_path / "made"), quantization="nf4", **common)
    name = "adapter_model.safetensors"
    assert (given.adapter / name).read_bytes() == (made.adapter / name).read_bytes()


def test_settings_of_evaluate_win_over_the_runs(tmp_path):
    (tmp_path / "config.toml").write_text("load_in_4bit = true\n")
    adapter = tmp_path / "adapter"
    assert _config(adapter, {}).quantization == "nf4"  # also of a run of before the setting had this name
    assert _config(adapter, {"quantization": "int8"}).quantization == "int8"
    assert _config(adapter, {"quantization": "none"}).quantization is None
    assert _config(adapter, {"engine": "plain"}).quantization == "nf4"
    assert _config(adapter, {"engine": "sglang"}).quantization is None


# ---- refused


REFUSED: dict[str, tuple[dict, str]] = {
    "the old name": ({"load_in_4bit": True}, "load_in_4bit is no setting any more; use --quantization nf4"),
    "all parameters": ({"quantization": "nf4", "tuning": "full"}, "--quantization does not go with --tuning full"),
    "SGLang": ({"quantization": "int8", "engine": "sglang"}, "--quantization .* use --sglang.quantization"),
    "derivatives": ({"quantization": "nf4", "estimator": "jvp"}, "--quantization does not go with --estimator jvp"),
    "a number": ({"quantization": 4}, "quantization: expected 'nf4' or 'int8', got 4"),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        make_config(settings)


MODELS: dict[str, tuple[str, dict, str]] = {
    "quantised twice": (
        "opt-4",
        {"quantization": "int8"},
        r"--quantization int8: .*opt-4 is quantised already \(bitsandb",
    ),
    "all parameters of a quantised folder": ("opt-4", {"tuning": "full"}, "--tuning full: .*opt-4 is quantised"),
    "derivatives of a quantised folder": ("opt-4", {"estimator": "jvp"}, "--estimator jvp: products with quantised"),
}


@pytest.mark.parametrize(("name", "settings", "message"), MODELS.values(), ids=MODELS.keys())
def test_models_that_do_not_go_with_the_settings_are_refused(folders, name, settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        mezo_finetune(folders[name], REVIEWS, task="demo", output_dir=str(tmp_path / "run"), **settings)
    assert list(tmp_path.iterdir()) == []


def test_a_loaded_model_is_not_quantised_again(folders, tmp_path):
    model = load_model(folders["opt"], "float32", "cpu")
    with pytest.raises(InputError, match="--quantization nf4 has no effect on a loaded model"):
        mezo_finetune(model, REVIEWS, task="demo", output_dir=str(tmp_path / "run"), quantization="nf4")


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--model", "$OPT", "--quantization", "nf4", "--output-dir", "run"],
        ["train", "--model", "$OPT-4", "--output-dir", "run"],
        ["evaluate", "--model", "$OPT", "--quantization", "int8"],
    ],
    ids=["training", "a quantised folder", "evaluation"],
)
def test_without_bitsandbytes_one_sentence_says_how_to_get_it(arguments, folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(SystemExit) as stop:
        main([argument.replace("$OPT", folders["opt"]) for argument in arguments])
    assert stop.value.code == 2
    *_, message = capsys.readouterr().err.splitlines()
    assert message.startswith("zotune: --")
    assert message.endswith('bitsandbytes is not installed; pip install "zotune[quantization]"')
    assert list(tmp_path.iterdir()) == []
