"""Runs that go on from an adapter: they start at its numbers, have its form, and are rebuilt without it."""

import json
import shlex
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PromptTuningConfig, get_peft_model

from tests.conftest import REVIEWS, make_model, make_tokenizer
from tests.golden import StopAt
from tests.test_adapter_settings import TOLERANCE, loaded_by_peft, peft_adapter, peft_scores, scores_of
from zotune import evaluate, mezo_finetune, replay_run, resume
from zotune.adapter.peft_files import load_adapter
from zotune.cli import main
from zotune.engine.torch.plain import PlainEngine
from zotune.errors import InputError

SETTINGS: dict[str, Any] = {
    "labels": ["terrible", "great"], "template": "{text}", "num_steps": 4, "eval_steps": 2, "batch_size": 4,
    "directions": 2, "num_threads": 1,
}  # fmt: skip
ACTIVATED = SETTINGS | {"invocation": " It was"}


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that may be removed, for what must do without it."""
    folder = tmp_path_factory.mktemp("model") / "opt"
    make_model("opt").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def before(opt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in scope activated."""
    return mezo_finetune(
        str(opt), REVIEWS, output_dir=str(tmp_path_factory.mktemp("runs") / "before"), **ACTIVATED
    ).run_folder


def theirs(folder: Path, kind: str) -> Path:
    """Adapters of PEFT, of forms that --lora-rank and --target-modules cannot say."""
    if kind == "soft prompt":
        torch.manual_seed(0)
        prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, num_transformer_submodules=1)
        get_peft_model(make_model("opt"), prompt).save_pretrained(str(folder))
        return folder
    return peft_adapter(
        folder, "opt", target_modules=r".*\.(q|v)_proj", exclude_modules=r".*\.0\.self_attn\.v_proj", use_rslora=True,
        rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3},
    )  # fmt: skip


def bytes_of(folder: Path) -> dict[str, bytes]:
    theta, _ = load_adapter(folder)
    return {name: tensor.tobytes() for name, tensor in theta.items()}


@pytest.mark.parametrize("tuning", ["lora", "lora_fa"])
def test_a_run_starts_at_the_numbers_of_an_adapter_and_keeps_its_invocation(opt, before, tmp_path, tuning):
    result = mezo_finetune(
        str(opt), REVIEWS, adapter=str(before / "adapter"), tuning=tuning, output_dir=str(tmp_path / "run"), **ACTIVATED
    )
    assert result.initial
    assert result.initial.loss == json.loads((before / "summary.json").read_text())["final"]["loss"]
    replay_run(result.run_folder, tmp_path / "at0", step=0)
    assert bytes_of(tmp_path / "at0") == bytes_of(before / "adapter")
    _, spec = load_adapter(result.adapter)
    assert spec == load_adapter(before / "adapter")[1]
    assert spec.scope == "activated"
    moved = {name for name, value in bytes_of(result.adapter).items() if value != bytes_of(before / "adapter")[name]}
    assert {"lora_A" in name for name in moved} == ({True, False} if tuning == "lora" else {False})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "soft prompt"])
def test_a_run_from_an_adapter_of_peft_is_rebuilt_without_it(tmp_path, kind):
    make_model("opt").save_pretrained(tmp_path / "opt")
    make_tokenizer().save_pretrained(tmp_path / "opt")
    adapter = theirs(tmp_path / "theirs", kind)
    settings = SETTINGS | {"adapter": str(adapter), "model": str(tmp_path / "opt"), "train_data": REVIEWS}
    whole = mezo_finetune(output_dir=str(tmp_path / "whole"), **settings)
    with suppress(KeyboardInterrupt):
        mezo_finetune(output_dir=str(tmp_path / "stopped"), callbacks=[StopAt(2)], **settings)
    started = bytes_of(adapter)
    shutil.rmtree(adapter)
    resumed = resume(tmp_path / "stopped")
    assert bytes_of(resumed.adapter) == bytes_of(whole.adapter)
    assert whole.final
    assert evaluate(adapter=whole.adapter).loss == whole.final.loss
    shutil.rmtree(tmp_path / "opt")
    for step, expected in ((0, started), (4, bytes_of(whole.adapter))):
        replay_run(tmp_path / "stopped", tmp_path / f"at{step}", step=step)
        assert bytes_of(tmp_path / f"at{step}") == expected
    if kind == "lora":
        theta, spec = load_adapter(whole.adapter)
        assert {tensor.shape[0] for name, tensor in theta.items() if "lora_A" in name} == {2, 4}
        expected_scores = peft_scores(loaded_by_peft(whole.adapter, make_model("opt")))
        scores = scores_of(PlainEngine(make_model("opt"), spec), theta)
        np.testing.assert_allclose(scores, expected_scores, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_settings_that_a_run_keeps_do_not_speak_of_what_the_adapter_has(opt, before, tmp_path):
    run = mezo_finetune(
        str(opt), REVIEWS, adapter=str(before / "adapter"), output_dir=str(tmp_path / "run"), **ACTIVATED
    ).run_folder
    text = (run / "config.toml").read_text()
    assert f'adapter = "{before / "adapter"}"' in text
    assert not any(name in text for name in ("lora_rank", "lora_alpha", "target_modules", "init_lora_weights"))


def test_a_run_may_take_the_place_of_the_one_that_it_goes_on_from(opt, before, tmp_path):
    run = Path(shutil.copytree(before, tmp_path / "run"))
    started = bytes_of(run / "adapter")
    mezo_finetune(str(opt), REVIEWS, adapter=str(run / "adapter"), output_dir=str(run), overwrite=True, **ACTIVATED)
    replay_run(run, tmp_path / "at0", step=0)
    assert bytes_of(tmp_path / "at0") == started


def test_a_start_that_has_changed_is_not_gone_on_with(opt, before, tmp_path):
    run = mezo_finetune(
        str(opt), REVIEWS, adapter=str(before / "adapter"), output_dir=str(tmp_path / "run"), **ACTIVATED
    ).run_folder
    start = run / "start.safetensors"
    content = bytearray(start.read_bytes())
    content[-1] ^= 1
    start.write_bytes(content)
    with pytest.raises(InputError, match=r"start\.safetensors has changed since the run began"):
        resume(run)


def test_other_base_weights_than_the_adapter_was_trained_on_are_told(before, tmp_path, caplog):
    model = make_model("opt")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    model.save_pretrained(tmp_path / "other")
    make_tokenizer().save_pretrained(tmp_path / "other")
    mezo_finetune(
        str(tmp_path / "other"), REVIEWS, adapter=str(before / "adapter"), output_dir=str(tmp_path / "run"), **ACTIVATED
    )
    assert "are not those that the adapter" in caplog.text


TRAIN = "train --train-data $DATA --labels terrible great --template {text} --num-steps 1 --output-dir $OUT"
REFUSED = {
    "a rank": ("--invocation ' It was' --lora-rank 4", "--lora-rank has no effect with --adapter"),
    "an alpha": ("--invocation ' It was' --lora-alpha 4", "--lora-alpha has no effect with --adapter"),
    "modules": ("--invocation ' It was' --target-modules fc1", "--target-modules has no effect with --adapter"),
    "a start": ("--invocation ' It was' --init-lora-weights eva", "--init-lora-weights has no effect with --adapter"),
    "another scope": ("--invocation ' It was' --scope everywhere", "--scope everywhere does not go with --adapter"),
    "another invocation": ("--invocation ' So'", "--invocation: ' So' is not what the adapter"),
    "no invocation": ("", "--invocation: '' is not what the adapter"),
    "all parameters": ("--tuning full", "--adapter does not go with --tuning full"),
    "vectors": ("--tuning vera", "--adapter does not go with --tuning vera"),
    "a soft prompt": ("--tuning prompt_tuning", "--tuning prompt_tuning does not go with --adapter"),
    "its tokens": (
        "--tuning prompt_tuning --prompt-tuning.num-virtual-tokens 4",
        "--prompt-tuning.num-virtual-tokens has no effect with --adapter",
    ),
    "another model": ("--invocation ' It was' --model $LLAMA", "was made for another model"),
    "no adapter": ("--adapter nothing", "--adapter: nothing is not an adapter folder"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_contradicts_the_adapter_is_refused_by_name(
    options, message, opt, before, model_dirs, reviews_file, tmp_path, capsys
):
    places = {"$DATA": reviews_file, "$OUT": tmp_path / "run", "$LLAMA": model_dirs["llama"]}
    line = shlex.split(f"{TRAIN} --model {opt} --adapter {before / 'adapter'} {options}")
    with pytest.raises(SystemExit) as end:
        main([str(places.get(word, word)) for word in line])
    assert end.value.code == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert message in last
    assert not (tmp_path / "run").exists()
