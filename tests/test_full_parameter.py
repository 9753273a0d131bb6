"""Training of all parameters: slopes against autograd, models untouched by probes, runs replayed to the bit."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig, PreTrainedModel

from tests.conftest import CONFIGS, TARGETS, make_model
from tests.test_estimators import BATCH
from tests.test_train import StopAt
from zotune import InputError, evaluate, mezo_finetune, replay_run, resume
from zotune.engine.torch import weights as weights_module
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.plain import PlainEngine
from zotune.engine.torch.weights import ModelWeights
from zotune.zo.estimators import Slope, Spsa
from zotune.zo.objectives import cross_entropy
from zotune.zo.optimizers import InPlace, Sgd
from zotune.zo.protocol import AT_THETA, Probe
from zotune.zo.updates import Slopes

ENGINES: dict[str, Any] = {"plain": PlainEngine, "torch": TorchEngine}


@pytest.fixture(params=[2**20, 500], ids=["whole tensors", "pieces"])
def piece_size(request, monkeypatch: pytest.MonkeyPatch) -> int:
    """Also with pieces so small that every matrix of the tiny models is several."""
    monkeypatch.setattr(weights_module, "PIECE_SIZE", request.param)
    return request.param


def bits(model: PreTrainedModel) -> dict[str, bytes]:
    return {name: value.view(torch.uint8).numpy().tobytes() for name, value in model.state_dict().items()}


def moved(model: PreTrainedModel, probe: Probe) -> PreTrainedModel:
    """The model at a probe, written out."""
    weights = ModelWeights(model)
    for name, value in probe.of(weights).items():
        weights[name] = value
    return model


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_probes_scores_are_those_of_a_model_that_was_moved_there(kind, make, dtype, piece_size):
    engine: TorchEngine | PlainEngine = make(make_model(kind).to(dtype), None)
    assert engine.weights is not None
    probe = Probe(3, 0.05)
    scores = engine.score(engine.weights, [probe, AT_THETA], BATCH).log_probs
    for row, model in enumerate((moved(make_model(kind).to(dtype), probe), make_model(kind).to(dtype))):
        there: TorchEngine | PlainEngine = make(model, None)
        assert there.weights is not None
        expected = there.score(there.weights, [AT_THETA], BATCH).log_probs[0]
        # In pieces, sums run in another order.
        np.testing.assert_allclose(scores[row], expected, rtol=1e-5 if dtype == torch.float32 else 0.03)
    assert abs(scores[0] - scores[1]).max() > 0.01


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_slopes_equal_autograds_directional_derivative(kind, make, piece_size):
    """To eps^2 times a third derivative, and the rounding of losses over eps: 1e-6 / 1e-3."""
    engine = make(make_model(kind), None)
    reference = make_model(kind)
    losses = []
    for example in BATCH:
        logits = reference(torch.tensor([example.prompt + example.invocation])).logits[0, -1]
        words = torch.stack([logits[candidate[0]] for candidate in example.candidates])
        losses.append(torch.logsumexp(words, 0) - words[example.label])
    torch.stack(losses).mean().backward()
    for parameter in reference.parameters():
        parameter.data = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
    gradient = ModelWeights(reference)
    probes = Spsa(1e-4).ask(range(8))
    slopes = Spsa(1e-4).tell(probes, cross_entropy.losses(engine.score(engine.weights, probes, BATCH), BATCH))
    exact = [
        sum(float((gradient[n].astype(np.float64) * z).sum()) for n, z in s.noise.direction(s.seed, gradient).items())
        for s in slopes
    ]
    error = np.array([slope.value for slope in slopes]) - exact
    assert np.linalg.norm(error) < 5e-3 * np.linalg.norm(exact)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probes_never_change_a_bit_of_the_model_and_close_leaves_it_as_it_was(kind, dtype, piece_size):
    model = make_model(kind).to(dtype)
    before, forwards = bits(model), [module.forward for module in model.modules()]
    engine = TorchEngine(model, None)
    assert engine.plain_reason is None
    assert engine.weights is not None
    engine.score(engine.weights, Spsa(0.1).ask(range(3)), BATCH)
    assert bits(model) == before
    engine.close()
    assert [module.forward for module in model.modules()] == forwards
    assert not any("forward" in vars(module) for module in model.modules())


def test_tied_parameters_are_one_tensor_and_move_together(piece_size):
    model = make_model("opt")
    names = {name.partition("[")[0] for name in ModelWeights(model)}
    assert "model.decoder.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    assert sum(value.size for value in ModelWeights(model).values()) == model.num_parameters()


def test_pieces_are_cut_by_rows_and_hold_every_number_once(piece_size):
    model = make_model("llama")
    weights = ModelWeights(model)
    for name, parameter in model.named_parameters():
        pieces = [piece for piece, _, _ in weights.pieces[id(parameter)]]
        assert np.array_equal(np.concatenate([weights[piece] for piece in pieces]), parameter.detach().numpy())
        assert all(weights[piece].size <= max(piece_size, parameter[0].numel()) for piece in pieces)
        assert pieces == [name] or all(piece.startswith(f"{name}[") for piece in pieces)


def test_an_update_in_place_is_the_optimizers_rounded_once():
    model = make_model("opt").bfloat16()
    weights = ModelWeights(model)
    before = {name: value.copy() for name, value in weights.items()}
    update = Slopes((Slope(1, 0.5), Slope(2, -1.0)))
    InPlace(Sgd(weight_decay=0.1)).update(weights, {}, update, 0.03)
    expected, _ = Sgd(weight_decay=0.1).update(before, {}, update, 0.03)
    for name, value in expected.items():
        assert np.array_equal(weights[name], torch.from_numpy(value).bfloat16().float().numpy())


# ---- runs


@pytest.fixture(scope="module")
def options(reviews_file: Path) -> dict:
    return {
        "train_data": str(reviews_file), "labels": ("terrible", "great"), "invocation": " It was", "tuning": "full",
        "num_steps": 8, "batch_size": 3, "directions": 2, "eval_steps": 3, "epsilon": 1e-2, "learning_rate": 1e-3,
        "num_threads": 1,
    }  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.slow
def test_the_trained_model_equals_the_replay_to_the_bit_also_after_a_resume(
    options, model_dirs, tmp_path, kind, dtype, monkeypatch
):
    monkeypatch.setattr(weights_module, "PIECE_SIZE", 2000)
    settings = {**options, "model": str(model_dirs[kind]), "dtype": dtype}
    result = mezo_finetune(**settings, output_dir=str(tmp_path / "run"))
    assert result.adapter == tmp_path / "run" / "model"
    replay_run(tmp_path / "run", tmp_path / "replayed")
    with pytest.raises(KeyboardInterrupt):
        mezo_finetune(**settings, output_dir=str(tmp_path / "stopped"), callbacks=[StopAt(5)])
    resume(tmp_path / "stopped")
    trained = bits(AutoModelForCausalLM.from_pretrained(result.adapter))
    assert trained == bits(AutoModelForCausalLM.from_pretrained(tmp_path / "replayed"))
    assert trained == bits(AutoModelForCausalLM.from_pretrained(tmp_path / "stopped" / "model"))
    assert trained != bits(AutoModelForCausalLM.from_pretrained(model_dirs[kind], dtype=dtype))
    for name in ("journal.jsonl", "model/config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()


def test_the_exported_folder_is_a_model_with_its_tokenizer(options, opt_dir, reviews_file, tmp_path):
    result = mezo_finetune(**{**options, "model": str(opt_dir)}, output_dir=str(tmp_path / "run"))
    assert result.final
    settings = {name: options[name] for name in ("labels", "invocation", "num_threads")}
    config = json.loads((result.adapter / "config.json").read_text())
    assert config["architectures"] == ["OPTForCausalLM"]
    AutoTokenizer.from_pretrained(result.adapter)
    held_out = evaluate(eval_data=str(reviews_file), model=str(result.adapter), **settings)
    before = evaluate(eval_data=str(reviews_file), model=str(opt_dir), **settings)
    assert held_out.loss != before.loss
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_replay_on_another_base_model_is_refused(options, model_dirs, tmp_path):
    mezo_finetune(**{**options, "model": str(model_dirs["opt"])}, output_dir=str(tmp_path / "run"))
    journal = tmp_path / "run" / "journal.jsonl"
    assert json.loads(journal.read_text().splitlines()[0])["lora"] is None
    moved_away = model_dirs["opt"].rename(model_dirs["opt"].with_name("away"))
    model_dirs["llama"].rename(model_dirs["opt"])
    try:
        with pytest.raises(InputError, match="is not the model that the run began with"):
            replay_run(tmp_path / "run", tmp_path / "replayed")
    finally:
        model_dirs["opt"].rename(model_dirs["llama"])
        moved_away.rename(model_dirs["opt"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_rank": 4}, "--lora-rank has no effect with --tuning full"),
        ({"target_modules": ("fc1",)}, "--target-modules has no effect with --tuning full"),
        ({"scope": "activated"}, "--scope activated has no meaning with --tuning full"),
        ({"optimizer": "adam"}, "--tuning full needs --optimizer sgd"),
        ({"sgd": {"momentum": 0.9}}, "--tuning full needs --optimizer sgd without --sgd.momentum"),
        ({"estimator": "svrg"}, "--estimator svrg does not go with --tuning full"),
        ({"estimator": "jvp", "epsilon": 1e-2}, "--estimator jvp does not go with --tuning full"),
    ],
)
def test_what_does_not_go_with_all_parameters_is_refused(options, opt_dir, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        mezo_finetune(**{**options, "model": str(opt_dir), **settings}, output_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_step_takes_less_than_a_tenth_more_memory_than_inference(tmp_path):
    """In fresh processes, on an OPT whose table of embeddings (147 MiB) is most of its 46 million parameters."""
    config = OPTConfig(
        vocab_size=50272, hidden_size=768, word_embed_proj_dim=768, ffn_dim=3072, num_hidden_layers=1,
        num_attention_heads=12,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    script = Path(__file__).parents[1] / "benchmarks" / "full_parameter.py"
    flags = ["--model", str(tmp_path / "model"), "--batch-size", "1", "--prompt-tokens", "16", "--steps", "1"]
    peaks = []
    for work in ("inference", "training"):
        command = [sys.executable, str(script), *flags, "--dtype", "float32", "--work", work]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(json.loads(result.stdout.splitlines()[-1])["peak_mib"])
    assert 300 < peaks[0] < 0.999 * peaks[1]
    assert peaks[1] < 1.1 * peaks[0]
