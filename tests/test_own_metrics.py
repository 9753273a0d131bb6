"""Metrics by name and `compute_metrics`: what evaluations measure beside the loss, of labels and of texts."""

import json
from typing import Any

import numpy as np
import pytest

from tests.conftest import REVIEWS
from zotune import InputError, evaluate, mezo_finetune, resume
from zotune.cli import main
from zotune.run.metrics import EvalEvent, read_metrics
from zotune.run.own_metrics import ROUGE, of_texts

PAIRS = [
    {"prompt": f"{text}, said", "completion": f" {answer}"}
    for text, answer in (("a great film", "my sister"), ("a bore", "the cast"), ("warm", "again and again")) * 3
]
LABELS: dict[str, Any] = {"labels": ("terrible", "great"), "invocation": " It was"}
SETTINGS: dict[str, Any] = {
    "num_steps": 2, "eval_steps": 2, "batch_size": 4, "directions": 1, "estimator": "one_sided", "num_threads": 1
}  # fmt: skip


def test_texts_are_measured_as_the_packages_do():
    texts, golds = ["the cat sat on the mat", "a dog"], [["the cat sat on a rug"], ["a dog", "one dog"]]
    assert of_texts("exact_match", texts, golds) == {"exact_match": 0.5}
    assert of_texts("f1", ["cat"], [["a cat!"]]) == {"f1": 1.0}
    rouge = of_texts("rouge", texts, golds)
    assert set(rouge) == set(ROUGE)
    assert rouge["rouge1"] == pytest.approx((4 / 6 + 1) / 2)  # four of six words on both sides
    assert rouge["rouge2"] == pytest.approx((3 / 5 + 1) / 2)
    assert of_texts("bleu", ["the cat sat on the mat"], [["the cat sat on the mat"]])["bleu"] == pytest.approx(100)
    assert of_texts("bleu", ["a b c d"], [["x"]])["bleu"] < 1
    assert of_texts("chrf", texts, [right[:1] for right in golds])["chrf"] > 50


def test_a_run_measures_what_it_writes_and_goes_on_doing_so(opt_dir, tmp_path):
    settings = SETTINGS | {"metrics": ("rouge", "exact_match"), "max_new_tokens": 4}
    result = mezo_finetune(str(opt_dir), PAIRS, PAIRS[:3], output_dir=str(tmp_path / "run"), **settings)
    assert result.final is not None
    assert set(result.final.scores) == {*ROUGE, "exact_match"}
    found = evaluate(PAIRS[:3], adapter=result.adapter)
    assert found.scores == pytest.approx(dict(result.final.scores))
    assert found.predictions is not None
    assert len(found.predictions) == 3
    golds = [[pair["completion"].strip()] for pair in PAIRS[:3]]
    assert of_texts("rouge", found.predictions, golds)["rougeL"] == pytest.approx(found.scores["rougeL"])
    events = [event for event in read_metrics(result.run_folder / "metrics.jsonl") if isinstance(event, EvalEvent)]
    assert all(set(event.scores) == set(found.scores) for event in events)
    (result.run_folder / "metrics.jsonl").unlink()
    assert resume(result.run_folder).final == result.final


def test_a_function_is_given_logits_and_labels_as_transformers_has_them(opt_dir, tmp_path):
    seen = []

    def compute_metrics(prediction):
        seen.append((prediction.predictions, prediction.label_ids))
        return {"right": np.mean(prediction.predictions.argmax(-1) == prediction.label_ids)}

    result = mezo_finetune(
        str(opt_dir), REVIEWS[:8], REVIEWS[:6], output_dir=str(tmp_path / "run"), metrics=["accuracy", "f1"],
        compute_metrics=compute_metrics, **LABELS, **SETTINGS,
    )  # fmt: skip
    assert result.final is not None
    assert seen[0][0].shape == (6, 2)
    assert seen[0][1].tolist() == [review["label"] for review in REVIEWS[:6]]
    assert result.final.scores == pytest.approx(
        {"accuracy": result.final.accuracy, "f1": result.final.macro_f1, "right": result.final.accuracy}
    )
    assert evaluate(REVIEWS[:6], adapter=result.adapter, compute_metrics=compute_metrics).scores["right"] == (
        pytest.approx(result.final.accuracy)
    )


def test_a_function_is_given_texts_where_the_model_writes(opt_dir):
    seen = []

    def compute_metrics(prediction):
        seen.append((prediction.predictions, prediction.label_ids))
        return {"length": float(np.mean([len(text) for text in prediction.predictions]))}

    found = evaluate(
        PAIRS[:3],
        model=str(opt_dir),
        task="completion",
        metrics=["f1"],
        max_new_tokens=4,
        compute_metrics=compute_metrics,
    )
    assert list(found.scores) == ["f1", "length"]
    assert seen[0][1] == ["my sister", "the cast", "again and again"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metrics": ["rouge"], **LABELS}, "--metrics rouge: task classification has accuracy, f1"),
        ({"metrics": ["wer"], **LABELS}, "--metrics wer: there is no such metric; task"),
        ({"metrics": ["accuracy"], "task": "lm"}, "--metrics accuracy: task lm has exact_match"),
        ({"metrics": ["bleu"], "task": "lm"}, "--metrics: task lm has no prompts with an answer"),
        ({"metrics": ["bleu"], "reward": ["length"]}, "--metrics bleu does not go with --reward"),
        ({"metrics": ["f1"], "max_new_tokens": 3, **LABELS}, "--max-new-tokens and --stop-strings have no effect"),
    ],
)
def test_metrics_that_a_task_has_not_are_refused(opt_dir, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        mezo_finetune(str(opt_dir), REVIEWS[:8], output_dir=str(tmp_path / "run"), **settings)


@pytest.mark.parametrize(
    ("function", "message"),
    [(lambda _: 1 / 0, "compute_metrics raised ZeroDivisionError"), (lambda _: {"a": "b"}, "expected numbers by")],
)
def test_a_function_that_gives_no_numbers_is_refused(opt_dir, function, message):
    with pytest.raises(InputError, match=message):
        evaluate(REVIEWS[:4], model=str(opt_dir), compute_metrics=function, **LABELS)


def test_the_command_prints_and_writes_them(opt_dir, reviews_file, tmp_path, capsys):
    words = ["--model", str(opt_dir), "--labels", "terrible", "great", "--metrics", "f1", "--num-threads", "1"]
    main(["evaluate", "--eval-data", str(reviews_file), *words, "--output-file", str(tmp_path / "found.json")])
    assert "f1" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["scores"] == {"f1": found["macro_f1"]}
