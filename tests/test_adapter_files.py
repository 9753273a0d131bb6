"""Adapter folders from elsewhere as public bug reports describe them, and damaged ones: read with PEFT's own scores, or
refused in one sentence that names the file, the setting or the tensor. None is passed over in silence."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PretrainedConfig

from tests.conftest import REVIEWS, make_model
from tests.test_adapter_settings import TOLERANCE, loaded_by_peft, peft_adapter, peft_scores, scores_of
from zotune import evaluate, mezo_finetune
from zotune.adapter.peft_files import load_adapter, save_adapter
from zotune.adapter.spec import LoraSpec, Selection
from zotune.assemble.adapter import Adapter
from zotune.assemble.model import find_model
from zotune.config.settings import Config
from zotune.data.task_choice import choose_task
from zotune.engine import ENGINES
from zotune.engine.kind import EngineRequest
from zotune.engine.torch.plain import PlainEngine
from zotune.errors import InputError

Tensors = dict[str, torch.Tensor]
FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
WORDS: dict[str, Any] = {"template": "{text}", "labels": ["terrible", "great"]}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peft_adapter(tmp_path_factory.mktemp("peft") / "plain")


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "adapter"))


def change_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


def change_settings(folder: Path, **settings: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def check_fits(folder: Path, model: Path) -> None:
    config = Config(model=str(model))
    Adapter.read(folder).check_fits(find_model(config), choose_task(None, **WORDS, invocation=None), config)


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def with_first(tensor: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        made = {FIRST: tensor(tensors[FIRST])}
        return {name: value for name, value in (tensors | made).items() if value is not None}

    return change


def set_number(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor[1, 2] = value
        return tensor

    return change


NO_PLACE = "made for another model than .*: its tensor {} has no place there"
TENSORS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "of a compiled model": (renamed("base_model", "_orig_mod.base_model"), NO_PLACE.format(r"_orig_mod\.\S*")),
    "with another adapter's name": (renamed(".weight", ".a.weight"), NO_PLACE.format(r"\S*lora_A\.a\.weight")),
    "with one of them twice": (
        lambda tensors: tensors | {FIRST.replace(".weight", ".default.weight"): torch.ones(4, 16)},
        NO_PLACE.format(r"\S*default\.weight"),
    ),
    "without PEFT's prefix": (renamed("base_model.model.", ""), "it has no base_model"),
    "of a headless model": (renamed("model.model.model.", "model.model."), "no place there"),
    "of a model that also sees": (renamed("model.layers", "model.language_model.layers"), "no place there"),
    "of renamed modules": (renamed("self_attn", "attention"), "no place there"),
    "without one": (with_first(lambda tensor: None), f"it has no {FIRST}"),
    "with one that is empty": (
        with_first(lambda tensor: torch.zeros(0)), rf"its {FIRST} is \(0,\), where \(4, 16\) belongs"
    ),
    "with one of another shape": (with_first(lambda tensor: tensor.T.contiguous()), rf"its {FIRST} is \(16, 4\)"),
    "with none at all": (lambda tensors: {}, "it has no base_model"),
    "with a number that is none": (with_first(set_number(float("nan"))), f"numbers in {FIRST} that are not finite"),
    "with a number without end": (with_first(set_number(float("-inf"))), f"numbers in {FIRST} that are not finite"),
    "with a name of two lines": (renamed("layers.0", "layers\n0"), r"damaged: no module's tensor is named '\S*\\n0"),
    "of whole numbers": (with_first(lambda tensor: tensor.to(torch.int8)), rf"has {FIRST} as torch\.int8"),
    "with DoRA's magnitudes": (
        lambda tensors: tensors | {FIRST.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(16)},
        NO_PLACE.format(r"\S*lora_magnitude_vector"),
    ),
    "with embeddings of added tokens": (
        lambda tensors: tensors | {"base_model.model.model.embed_tokens.weight": torch.ones(325, 16)},
        NO_PLACE.format(r"base_model\.model\.model\.embed_tokens\.weight"),
    ),
    "with a trained head": (
        lambda tensors: tensors | {"base_model.model.lm_head.weight": torch.ones(320, 16)},
        NO_PLACE.format(r"base_model\.model\.lm_head\.weight"),
    ),
    "of a LoRA on a LoRA": (renamed("base_model.", "base_model.model.base_model."), "no place there|it has no"),
    "with a scale for each module": (
        lambda tensors: tensors | {FIRST.replace("lora_A.weight", "alpha"): torch.ones(())}, "no place there"
    ),
    "with biases": (
        lambda tensors: tensors | {FIRST.replace("lora_A.weight", "bias"): torch.ones(16)}, "no place there"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), TENSORS.values(), ids=TENSORS.keys())
def test_tensors_that_would_be_passed_over_are_refused_by_name(folder, model_dirs, change, message):
    change_tensors(folder, change)
    with pytest.raises(InputError, match=rf"^--adapter: [^\n]*{message}[^\n]*$"):
        check_fits(folder, model_dirs["llama"])


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "of more layers": ({"layers_to_transform": [0]}, r"its tensor \S*layers\.1\.\S* has no place there"),
    "of another rank": ({"r": 8}, rf"its {FIRST} is \(4, 16\), where \(8, 16\) belongs"),
    "of fewer modules": ({"target_modules": ["q_proj"]}, r"its tensor \S*v_proj\S* has no place there"),
    "of more modules": ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, r"it has no \S*o_proj\.lora_A\.weight"),
    "of embeddings": ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens .* is a Embedding"),
    "of the head": ({"target_modules": ["q_proj", "lm_head"]}, "lm_head .* is the output layer"),
    "of experts by their old names": ({"target_modules": ["w1", "w2", "w3"]}, "'w1' matches no linear module"),
    "of another model": ({"target_modules": ["c_attn"]}, "'c_attn' matches no linear module"),
    "of merged linear modules": ({"enable_lora": [True, False, True]}, "has enable_lora"),
    "of a whole model": ({"peft_type": None, "architectures": ["LlamaForCausalLM"]}, "has peft_type None"),
}


@pytest.mark.parametrize(("settings", "message"), SETTINGS.values(), ids=SETTINGS.keys())
def test_settings_that_do_not_go_with_the_tensors_are_refused(folder, model_dirs, settings, message):
    change_settings(folder, **settings)
    with pytest.raises(InputError, match=rf"^--adapter: [^\n]*{message}[^\n]*$"):
        check_fits(folder, model_dirs["llama"])


HARMLESS: dict[str, dict[str, Any]] = {
    "a newer PEFT": {"peft_version": "9.9.9", "a_setting_of_next_year": None, "another": False},
    "an older PEFT": {"enable_lora": None, "merge_weights": False},
    "another task": {"task_type": "SEQ_CLS"},
    "training of it": {"lora_dropout": 0.3, "inference_mode": False, "eva_config": {"rho": 2.0}},
    "Unsloth": {"auto_mapping": {"unsloth_fixed": True}, "base_model_name_or_path": "unsloth/x-bnb-4bit"},
    "a set, sorted": {"target_modules": ["v_proj", "q_proj", "q_proj"]},
}


@pytest.mark.parametrize("settings", HARMLESS.values(), ids=HARMLESS.keys())
def test_settings_that_change_nothing_are_read(folder, settings):
    expected = peft_scores(loaded_by_peft(folder, make_model("llama")))
    change_settings(folder, **settings)
    theta, spec = load_adapter(folder)
    np.testing.assert_allclose(scores_of(PlainEngine(make_model("llama"), spec), theta), expected, atol=TOLERANCE)


def test_tensors_with_the_name_that_an_adapter_has_in_memory_are_read(folder):
    expected = peft_scores(loaded_by_peft(folder, make_model("llama")))
    change_tensors(folder, renamed(".weight", ".default.weight"))
    theta, spec = load_adapter(folder)
    np.testing.assert_allclose(scores_of(PlainEngine(make_model("llama"), spec), theta), expected, atol=TOLERANCE)


def test_patterns_keep_their_order(tmp_path):
    """Of two patterns that match PEFT takes the first; PEFT's own files have them sorted."""
    model = make_model("llama")
    patterns = {r".*layers\.1.*q_proj": 6, "(model.*)?q_proj": 2}  # "(" sorts before "."
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "rank_pattern": patterns}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    engine = PlainEngine(model, LoraSpec(4, 8, ("q_proj",), selection=load_adapter_spec(tmp_path).selection))
    ranks = [shape[0] for name, shape in engine.tensor_shapes.items() if "lora_A" in name]
    assert ranks == [2, 6]
    theta, _ = engine.layers.trial()
    assert engine.spec
    save_adapter(tmp_path / "again", theta, engine.spec, "none")
    expected = peft_scores(loaded_by_peft(tmp_path / "again", make_model("llama")))
    np.testing.assert_allclose(scores_of(engine, theta), expected, atol=TOLERANCE)


def load_adapter_spec(folder: Path) -> LoraSpec:
    save_file({}, folder / "adapter_model.safetensors")
    spec = load_adapter(folder)[1]
    assert isinstance(spec, LoraSpec)
    return spec


def test_tensors_in_a_pickle_are_refused_with_the_way_out(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InputError, match=r"^--adapter: \S+ has its tensors in adapter_model\.bin, .*save it again"):
        load_adapter(folder)


@pytest.mark.parametrize("name", ["", "nothing", "a" * 300, "a\0b", "a/" * 3000])
def test_a_path_that_leads_to_no_adapter_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"^--adapter: "):
        load_adapter(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b'{"r": NaN', b"\x00" * 64, b'{"r": ' + b"9" * 5000])
def test_damaged_settings_are_refused(folder, content):
    (folder / "adapter_config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"^--adapter: [^\n]*damaged: adapter_config\.json"):
        load_adapter(folder)


def test_any_bit_that_turns_over_in_the_tensors_is_noticed(tmp_path):
    engine = PlainEngine(make_model("llama"), LoraSpec(2, 4.0, ("q_proj",)))
    theta, _ = engine.layers.trial()
    assert engine.spec
    save_adapter(tmp_path, theta, engine.spec, "none")
    file = tmp_path / "adapter_model.safetensors"
    content = file.read_bytes()
    loaded, _ = load_adapter(tmp_path)
    rng = np.random.default_rng(0)
    start = 8 + int.from_bytes(content[:8], "little")
    for place in [*range(0, start, 7), *map(int, rng.integers(start, len(content), 100))]:
        turned = bytearray(content)
        turned[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(turned)
        try:
            again, _ = load_adapter(tmp_path)
        except InputError:
            continue
        assert place < start  # where no tensor is: in a word of the header that says nothing of them
        assert {name: value.tobytes() for name, value in again.items()} == {
            name: value.tobytes() for name, value in loaded.items()
        }


def test_an_adapter_of_ours_that_peft_saved_again_is_read(tmp_path):
    """PEFT writes a file without our digest."""
    engine = PlainEngine(make_model("llama"), LoraSpec(2, 4.0, ("q_proj",)))
    theta, _ = engine.layers.trial()
    assert engine.spec
    save_adapter(tmp_path / "ours", theta, engine.spec, "none")
    with safe_open(tmp_path / "ours" / "adapter_model.safetensors", framework="np") as file:
        assert {"format", "sha256"} == file.metadata().keys()
    model = loaded_by_peft(tmp_path / "ours", make_model("llama"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(2)
    model.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    again, _ = load_adapter(tmp_path / "theirs")
    for name, tensor in theta.items():
        np.testing.assert_array_equal(again[name], np.multiply(tensor, 2 if "lora_B" in name else 1))


def test_a_new_adapter_has_the_permissions_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        save_adapter(tmp_path / "a", {"x.lora_A.weight": np.zeros((1, 2), np.float32)}, LoraSpec(1, 1, ("x",)), "none")
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "a").iterdir()}
    finally:
        os.umask(before)
    assert set(modes.values()) == {0o640}, modes


# ---- the base model


def test_what_does_not_fit_is_refused_before_weights_are_read(folder, model_dirs, monkeypatch):
    monkeypatch.setattr("zotune.assemble.model.load_model", lambda *_: pytest.fail("the weights were read"))
    change_tensors(folder, with_first(lambda tensor: None))
    with pytest.raises(InputError, match=f"it has no {FIRST}"):
        evaluate(REVIEWS[:4], adapter=folder, model=str(model_dirs["llama"]), **WORDS)
    with pytest.raises(InputError, match=f"it has no {FIRST}"):
        mezo_finetune(str(model_dirs["llama"]), REVIEWS, adapter=folder, **WORDS)
    with pytest.raises(InputError, match="'q_prj' matches no linear module"):
        mezo_finetune(str(model_dirs["llama"]), REVIEWS, target_modules=["q_prj"], **WORDS)


def test_sglang_refuses_ranks_that_differ_before_it_starts(folder):
    _, spec = load_adapter(folder)
    assert isinstance(spec, LoraSpec)
    for pattern in (Selection(rank_pattern=(("q_proj", 2),)), Selection(alpha_pattern=(("q_proj", 2.0),))):
        asked = EngineRequest("m", PretrainedConfig(), replace(spec, selection=pattern), "float32", "cpu")
        with pytest.raises(InputError, match="--engine sglang has one rank and one alpha for all modules"):
            ENGINES["sglang"].open(asked)


def test_an_adapter_from_elsewhere_is_evaluated_on_the_model_that_it_names(folder, model_dirs):
    change_settings(folder, base_model_name_or_path=str(model_dirs["llama"]))
    named = evaluate(REVIEWS[:4], adapter=folder, **WORDS)
    assert named.loss == evaluate(REVIEWS[:4], adapter=folder, model=str(model_dirs["llama"]), **WORDS).loss
    change_settings(folder, base_model_name_or_path=None)
    with pytest.raises(InputError, match=r"^--model: the adapter \S+ does not name the model that it is for$"):
        evaluate(REVIEWS[:4], adapter=folder, **WORDS)
    change_settings(folder, base_model_name_or_path="a/b", revision="step-3000")
    with pytest.raises(InputError, match=r"^--model: the adapter \S+ is for revision 'step-3000' of a/b; "):
        evaluate(REVIEWS[:4], adapter=folder, **WORDS)
    assert evaluate(REVIEWS[:4], adapter=folder, model=str(model_dirs["llama"]), **WORDS).loss == named.loss


def test_an_adapter_of_a_model_with_tied_embeddings_leaves_the_head_alone(tmp_path):
    """What PEFT adapts beside a tied head is read; the head itself is the embedding, and is not adapted."""
    model = make_model("llama")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "tied")
    tied = AutoModelForCausalLM.from_pretrained(tmp_path / "tied").eval()
    folder = peft_adapter(tmp_path / "adapter", target_modules="all-linear")
    theta, spec = load_adapter(folder)
    expected = peft_scores(loaded_by_peft(folder, AutoModelForCausalLM.from_pretrained(tmp_path / "tied")))
    np.testing.assert_allclose(scores_of(PlainEngine(tied, spec), theta), expected, atol=TOLERANCE)
