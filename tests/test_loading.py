"""Checkpoints that are not what their configuration says."""

import pytest
from safetensors.torch import load_file, save_file

from tests.conftest import make_model
from zotune.engine.torch.loading import load_model
from zotune.errors import InputError

LAYER = "model.decoder.layers.1.fc1.weight"


@pytest.fixture
def saved(tmp_path):
    """A folder of a tiny model, and a way to change its tensors."""
    make_model("opt").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"

    def change(how):
        tensors = load_file(path)
        how(tensors)
        save_file(tensors, path, metadata={"format": "pt"})
        return str(tmp_path)

    return change


@pytest.mark.parametrize(
    ("how", "named"),
    [
        (lambda tensors: tensors.pop(LAYER), LAYER),
        (lambda tensors: tensors.update({"other.weight": tensors.pop(LAYER)}), LAYER),
        (lambda tensors: tensors.update({LAYER: tensors[LAYER][:5].clone()}), LAYER),
        (lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.0" in name], "and 13 more"),
    ],
    ids=["gone", "renamed", "misshaped", "a layer gone"],
)
def test_weights_that_are_not_there_are_refused_not_made_up(saved, how, named):
    with pytest.raises(InputError) as refused:
        load_model(saved(how), "float32", "cpu")
    assert named in str(refused.value)
    assert str(refused.value).startswith("--model: ")


def test_weights_that_nothing_uses_are_named(saved, caplog):
    folder = saved(lambda tensors: tensors.update({"classifier.weight": tensors[LAYER].clone()}))
    assert load_model(folder, "float32", "cpu") is not None
    assert "no use for: classifier.weight" in caplog.text


def test_a_head_that_is_tied_is_not_missing(saved):
    folder = saved(lambda tensors: tensors.pop("lm_head.weight", None))
    assert load_model(folder, "float32", "cpu") is not None
