"""Scores of answers, against values worked out by hand and against scikit-learn where it is installed."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.test_templates import DEMO
from zotune import evaluate
from zotune.data.demo import demo_path
from zotune.run.scores import exact_match, mean_best, token_f1
from zotune.zo.objectives import macro_f1


def test_macro_f1_is_the_mean_over_labels_that_occur():
    # label 0: 1 of 2 expected, 1 of 1 answered, 2/3; label 1: 1 of 1, 1 of 2, 2/3; label 2 and 3: nothing right
    assert macro_f1([0, 0, 1, 2], [0, 1, 1, 3]) == pytest.approx((2 / 3 + 2 / 3 + 0 + 0) / 4)
    assert macro_f1([5, 5], [5, 5]) == 1.0


def test_macro_f1_equals_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    for size in (1, 5, 100):
        labels, answers = random.integers(0, 4, size).tolist(), random.integers(0, 4, size).tolist()
        expected = metrics.f1_score(labels, answers, average="macro", zero_division=0)
        assert macro_f1(labels, answers) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "gold", "f1", "exact"),
    [
        ("The  Eiffel Tower!", "eiffel tower", 1.0, 1.0),
        ("in Paris, France", "Paris", 0.5, 0.0),  # precision 1/3, recall 1
        ("a b b", "b b b", 0.8, 0.0),  # the article goes: precision 1, recall 2/3
        ("London", "Paris", 0.0, 0.0),
        ("", "Paris", 0.0, 0.0),
        ("the", "a", 1.0, 1.0),  # both are empty without articles
    ],
)
def test_texts_are_compared_as_squad_compares_them(answer, gold, f1, exact):
    assert token_f1(answer, gold) == pytest.approx(f1)
    assert exact_match(answer, gold) == exact


def test_the_best_right_answer_counts():
    assert mean_best(token_f1, ["in Paris", "x"], [["Rome", "Paris"], ["y"]]) == pytest.approx(1 / 3)


def test_generated_answers_are_those_of_transformers():
    """Greedily, up to a line break; the right answer of one record is made the one that transformers gives."""
    passages = [{"passage": text, "question": "How good?"} for text in ("A warm and clever film.", "A bore.")]
    model = AutoModelForCausalLM.from_pretrained(demo_path("model"), dtype=torch.float32).eval()
    expected = []
    for fields in passages:
        prompt = f"Passage: {fields['passage']}\nQuestion: {fields['question']}\nAnswer:"
        token_ids = DEMO(prompt, return_tensors="pt")
        made = model.generate(**token_ids, max_new_tokens=50, do_sample=False)[0, token_ids.input_ids.shape[1] :]
        expected.append(str(DEMO.decode(made, skip_special_tokens=True)).partition("\n")[0].strip())
    records = [
        {**fields, "answers_spans": {"spans": ["no such thing", answer] if index == 0 else ["zzz"]}}
        for index, (fields, answer) in enumerate(zip(passages, expected, strict=True))
    ]
    found = evaluate(records, model="demo", task="drop", dtype="float32")
    assert expected[0]
    assert found.predictions == tuple(expected)
    assert (found.exact_match, found.token_f1, found.accuracy) == (0.5, 0.5, None)
