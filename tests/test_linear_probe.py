"""Linear probing, against transformers' hidden states and scikit-learn alone."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import REVIEWS
from tests.test_templates import DEMO
from zotune.cli import main
from zotune.data.demo import demo_path
from zotune.data.tasks import TASKS
from zotune.data.templates import Encoder
from zotune.data.texts import TextExample
from zotune.tools.linear_probe import features


def reference(records: list[dict[str, Any]]) -> np.ndarray:
    """The input of the LM head at the last token of each prompt, float32 [record, width]."""
    model = AutoModelForCausalLM.from_pretrained(demo_path("model"), dtype=torch.float32).eval()
    seen: list[np.ndarray] = []
    model.lm_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0, -1].detach().numpy()))
    with torch.no_grad():
        for record in records:
            model(**DEMO(f"{record['text']} It was", return_tensors="pt"))
    return np.stack(seen)


def test_features_are_what_the_head_reads_at_the_last_token():
    encoder = Encoder(DEMO, TASKS["demo"], 64, activated=False)
    examples = encoder.encode([TextExample(review["text"], 0, "", "here") for review in REVIEWS[:4]]).examples
    model = AutoModelForCausalLM.from_pretrained(demo_path("model"), dtype=torch.float32).eval()
    np.testing.assert_allclose(features(model, examples), reference(REVIEWS[:4]), rtol=0, atol=1e-5)


def test_scores_are_scikit_learns(tmp_path, monkeypatch, capsys):
    linear_model = pytest.importorskip("sklearn.linear_model")
    monkeypatch.chdir(tmp_path)
    for name, rows in (("train", REVIEWS[:24]), ("eval", REVIEWS[24:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main([
        "linear-probe", "--task", "demo", "--train-data", "train.jsonl", "--eval-data", "eval.jsonl", "--dtype",
        "float32", "--output-file", "found.json",
    ])  # fmt: skip
    found = json.loads((tmp_path / "found.json").read_text())
    regression = linear_model.LogisticRegressionCV(
        cv=5, l1_ratios=(0,), fit_intercept=False, max_iter=5000, scoring="accuracy", use_legacy_attributes=False
    )
    regression.fit(reference(REVIEWS[:24]), [row["label"] for row in REVIEWS[:24]])
    expected = regression.predict(reference(REVIEWS[24:])).tolist()
    assert found["predictions"] == expected
    assert found["accuracy"] == np.mean(
        [row["label"] == guess for row, guess in zip(REVIEWS[24:], expected, strict=True)]
    )
    assert (found["num_train"], found["num_examples"]) == (24, len(REVIEWS) - 24)
    assert f"{found['accuracy']:.1%}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        (
            "copa",
            [{"premise": "A", "choice1": "b", "choice2": "c", "question": "cause", "label": 0}] * 9,
            "no fixed labels",
        ),
        ("demo", [{"text": "fine", "label": 1}] * 9, "got 8 of great"),
    ],
)
def test_data_that_cannot_be_probed_are_refused(task, rows, message, tmp_path, capsys):
    pytest.importorskip("sklearn.linear_model")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit) as end:
        main(["linear-probe", "--task", task, "--train-data", str(tmp_path / "train.jsonl")])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
