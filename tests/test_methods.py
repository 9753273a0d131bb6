"""Every estimator, optimizer, kind of noise and form of adapter in a real run: stopped and resumed to the same bits."""

import signal
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from tests.conftest import make_model
from tests.processes import run_to_end
from zotune import Callback, mezo_finetune, replay_run, resume
from zotune.adapter.forms import FORMS, initial_theta, lora_matrices
from zotune.adapter.peft_files import load_adapter, save_adapter
from zotune.adapter.spec import LoraSpec, PromptSpec
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.plain import PlainEngine
from zotune.run.journal import read_journal
from zotune.zo.estimators import ESTIMATORS
from zotune.zo.noise import KINDS
from zotune.zo.optimizers import OPTIMIZERS
from zotune.zo.protocol import AT_THETA, Example, Probe

STEPS = 20
ROWS: dict[str, dict[str, Any]] = {
    "one_sided": {"estimator": "one_sided"},
    "fzoo": {"estimator": "fzoo", "optimizer": "sgd"},
    "fzoo, Gaussian": {"estimator": "fzoo", "noise": "gaussian", "clip": 3.0},
    "es of z-scores": {"estimator": "es", "optimizer": "adam"},
    "es of ranks": {"estimator": "es", "es": {"shaping": "rank"}, "optimizer": "adamw", "weight_decay": 0.1},
    "svrg": {"estimator": "svrg", "svrg": {"steps": 6, "batches": 3}, "optimizer": "sgd", "sgd": {"momentum": 0.5}},
    "hizoo": {"estimator": "hizoo", "optimizer": "hizoo", "hizoo": {"smoothing": 0.01}},
    "adaptive": {"estimator": "adaptive", "adaptive": {"steps": 4}, "optimizer": "adam"},
    "sign": {"estimator": "spsa", "optimizer": "sign", "clip": 2.0, "learning_rate": 1e-3},
    "muon": {"optimizer": "muon", "noise": "low_rank", "low_rank": {"rank": 1}, "noise_steps": 7},
    "sphere": {"noise": "sphere", "optimizer": "adam", "adam": {"beta2": 0.9}},
    "sparse": {"sparsity": 0.75, "noise": "rademacher", "engine": "plain"},
    "blocks": {"noise_blocks": 2, "noise_steps": 3, "optimizer": "sgd", "sgd": {"momentum": 0.9}},
    "everywhere": {"scope": "everywhere", "estimator": "svrg", "noise": "rademacher", "optimizer": "adamw"},
    "lora": {"tuning": "lora", "optimizer": "adam"},
    "lora_fa, at random": {"tuning": "lora_fa", "init_lora_weights": "kaiming", "optimizer": "adam"},
    "jvp": {"estimator": "jvp", "optimizer": "adam"},
    "prompt_tuning": {
        "tuning": "prompt_tuning",
        "prompt_tuning": {"num_virtual_tokens": 9},
        "lora_rank": 8,
        "optimizer": "muon",
    },
    "backprop": {"estimator": "backprop", "directions": None},
    "lens": {"estimator": "lens", "directions": None, "target_modules": ("out_proj", "fc2")},
    "lens, A and B": {"estimator": "lens", "directions": None, "tuning": "lora", "target_modules": ("q_proj", "fc1")},
    "vera": {"tuning": "vera", "lora_rank": 16, "estimator": "fzoo", "learning_rate": 0.05},
}


def test_every_method_is_in_a_row():
    for option, table in (("estimator", ESTIMATORS), ("optimizer", OPTIMIZERS), ("noise", KINDS)):
        used = {row.get(option) for row in ROWS.values()}
        assert set(table) <= used
    assert {*FORMS, PromptSpec.peft_type} == {row.get("tuning", "lora_fa") for row in ROWS.values()}


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, event) -> None:
        if event.step == self.step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def options(opt_dir: Path, reviews_file: Path) -> dict:
    return {
        "model": str(opt_dir), "train_data": str(reviews_file), "labels": ("terrible", "great"),
        "invocation": " It was", "num_steps": STEPS, "batch_size": 3, "directions": 2, "eval_steps": 10,
        "learning_rate": 0.01, "lora_rank": 2, "num_threads": 1, "max_eval_samples": 4,
    }  # fmt: skip


def files_of(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in ("journal.jsonl", "adapter/adapter_model.safetensors")}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@pytest.mark.slow
def test_a_run_stopped_twice_resumes_and_replays_to_the_same_bits(row, options, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    mezo_finetune(**{**options, **row}, output_dir=str(whole))
    with pytest.raises(KeyboardInterrupt):
        mezo_finetune(**{**options, **row}, output_dir=str(stopped), callbacks=[StopAt(5)])
    with pytest.raises(KeyboardInterrupt):
        resume(stopped, callbacks=[StopAt(13)])
    resume(stopped)
    assert files_of(stopped) == files_of(whole)
    replay_run(whole, tmp_path / "replayed")
    assert (tmp_path / "replayed" / "adapter_model.safetensors").read_bytes() == files_of(whole)[
        "adapter/adapter_model.safetensors"
    ]
    entries = read_journal(whole / "journal.jsonl")[1]
    values = [slope.value for entry in entries for slope in entry.slopes] or [entry.loss for entry in entries]
    assert len(set(values)) > 4  # ranks of four losses have few values


@pytest.mark.parametrize("name", ["svrg", "adaptive"])
@pytest.mark.slow
def test_kill_9_and_resume_of_what_remembers_most(name, options, tmp_path):
    settings = {**options, **ROWS[name]}
    script = textwrap.dedent(f"""
        import os, signal
        from zotune import Callback, mezo_finetune
        class Kill(Callback):
            def on_step_end(self, event):
                if event.step == 9:
                    os.kill(os.getpid(), signal.SIGKILL)
        mezo_finetune(**{settings!r}, output_dir={str(tmp_path / "killed")!r}, callbacks=[Kill()])
    """)
    assert run_to_end(code=script).returncode == -signal.SIGKILL
    assert len(read_journal(tmp_path / "killed" / "journal.jsonl")[1]) == 9
    resume(tmp_path / "killed")
    mezo_finetune(**settings, output_dir=str(tmp_path / "whole"))
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


@pytest.mark.slow
def test_the_adaptive_run_did_change_its_eps(options, tmp_path):
    """Read off the journal: a two-sided slope at another eps has another value from the first measurement on."""
    for name, row in (("adaptive", {"estimator": "adaptive"}), ("spsa", {"estimator": "spsa"})):
        mezo_finetune(**{**options, **row, "num_steps": 2, "epsilon": 1.0}, output_dir=str(tmp_path / name))
    adaptive, plain = (read_journal(tmp_path / name / "journal.jsonl")[1] for name in ("adaptive", "spsa"))
    assert [slope.value for slope in adaptive[0].slopes] == pytest.approx([s.value for s in plain[0].slopes], rel=1e-4)
    assert [slope.value for slope in adaptive[1].slopes] != pytest.approx([s.value for s in plain[1].slopes], rel=1e-3)
    assert all(slope.curvature is not None and slope.rounding for slope in adaptive[0].slopes)
    assert all(slope.rounding is None for slope in adaptive[1].slopes)


# ---- forms of the adapter

SPEC = LoraSpec(4, 8.0, ("q_proj", "v_proj"), (50, 51))
BATCH = [
    Example((1, 9, 30, 41, 7), (50, 51), ((60,), (61,)), 0),
    Example((1, 12, 13), (50, 51), ((60, 62), (61,)), 1),
]


def spec_of(form: str) -> LoraSpec:
    return LoraSpec(4, 8.0, SPEC.target_modules, SPEC.invocation_tokens, peft_type=form, frozen_seed=5)


@pytest.mark.parametrize("made", [PlainEngine, TorchEngine])
@pytest.mark.parametrize("form", FORMS)
def test_a_form_scores_as_the_lora_it_stands_for_and_exports_it(form, made, tmp_path):
    engine = made(make_model("opt"), spec_of(form))
    theta = dict(Probe(3, 0.5).of(initial_theta(engine.tensor_shapes, 1)))
    scores = engine.score(theta, [AT_THETA, Probe(4, 0.1)], BATCH).log_probs
    matrices = lora_matrices(theta, engine.spec)
    moved = lora_matrices(Probe(4, 0.1).of(theta), engine.spec)
    save_adapter(tmp_path / "adapter", theta, engine.spec, "a/b")
    engine.close()
    plain = PlainEngine(make_model("opt"), SPEC)
    for probe, point in enumerate((matrices, moved)):
        assert {name: value.shape for name, value in point.items()} == plain.tensor_shapes
        np.testing.assert_allclose(scores[probe], plain.score(point, [AT_THETA], BATCH).log_probs[0], rtol=1e-5)
    assert np.abs(scores[0] - scores[1])[:, 0].min() > 1e-4
    exported, spec = load_adapter(tmp_path / "adapter")
    assert isinstance(spec, LoraSpec)
    assert (spec.rank, spec.alpha, spec.peft_type) == (4, 8.0, "lora")
    assert {name: value.tobytes() for name, value in exported.items()} == {n: v.tobytes() for n, v in matrices.items()}


def test_lora_fa_trains_b_from_the_a_that_lora_would_start_with():
    engine = PlainEngine(make_model("opt"), spec_of("lora_fa"))
    lora = PlainEngine(make_model("opt"), SPEC)
    assert set(engine.tensor_shapes) == {name for name in lora.tensor_shapes if "lora_B" in name}
    assert isinstance(engine.spec, LoraSpec)
    start = lora_matrices(initial_theta(engine.tensor_shapes, 5), engine.spec)
    for name, value in initial_theta(lora.tensor_shapes, 5).items():
        assert np.array_equal(start[name], value)


def test_vera_trains_two_vectors_a_module_and_shares_the_rest():
    engine = PlainEngine(make_model("opt"), LoraSpec(4, 8.0, ("q_proj", "fc1"), peft_type="vera"))
    theta = initial_theta(engine.tensor_shapes, 0)
    assert {(name.rpartition(".")[2], value.shape) for name, value in theta.items()} == {
        ("vera_lambda_d", (4,)), ("vera_lambda_b", (16,)), ("vera_lambda_b", (32,)),
    }  # fmt: skip
    assert all((value == (0.1 if name.endswith("d") else 0)).all() for name, value in theta.items())
    assert isinstance(engine.spec, LoraSpec)
    ones = {name: np.ones_like(value) for name, value in theta.items()}
    matrices = lora_matrices(ones, engine.spec)
    first, other = (matrices[name] for name in matrices if name.endswith("q_proj.lora_A.weight"))
    assert np.array_equal(first, other)
    wide = next(value for name, value in matrices.items() if name.endswith("fc1.lora_B.weight"))
    narrow = next(value for name, value in matrices.items() if name.endswith("q_proj.lora_B.weight"))
    assert np.array_equal(wide[:16], narrow)


@pytest.mark.parametrize("form", ["lora_fa", "vera"])
def test_peft_loads_what_a_run_of_another_form_exports(form, options, tmp_path):
    from peft import PeftModel

    run = tmp_path / "run"
    mezo_finetune(**{**options, "tuning": form, "scope": "everywhere", "num_steps": 2}, output_dir=str(run))
    model = AutoModelForCausalLM.from_pretrained(options["model"])
    loaded = PeftModel.from_pretrained(model, str(run / "adapter"))
    exported, _ = load_adapter(run / "adapter")
    state = loaded.state_dict()
    for name, value in exported.items():
        np.testing.assert_array_equal(state[name.replace(".weight", ".default.weight")].numpy(), value)
