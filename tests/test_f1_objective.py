"""--objective f1: 1 - macro F1 of a batch's answers, from the same scores as the accuracy."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from tests.test_train import StopAt, durable
from zotune import InputError, evaluate, mezo_finetune, resume
from zotune.assemble.precision import slope_error
from zotune.config.reading import make_config
from zotune.config.run import make_objective
from zotune.data.tasks import TASKS
from zotune.run.evaluation import evaluate as evaluate_examples
from zotune.run.journal import read_journal
from zotune.zo.estimators import OneSided
from zotune.zo.objectives import OBJECTIVES, Objective, macro_f1
from zotune.zo.protocol import AT_THETA, Example, Probe, Scores
from zotune.zo.updates import Slopes

F1, ACCURACY = OBJECTIVES["f1"], OBJECTIVES["accuracy"]
WORDS = ((1,), (2,), (3,), (4,))


class Answering:
    """An engine whose probes answer what is given, a row for each; a call goes on where the last one ended."""

    def __init__(self, answers: list[list[int]]) -> None:
        self.answers = np.array(answers)
        self.calls: list[Any] = []
        self.place = 0

    def score(self, theta: Any, probes: Any, batch: Any, normalized: bool = True) -> Scores:
        self.calls.append((theta, list(probes), list(batch), normalized))
        asked = self.answers[: len(probes), self.place : self.place + len(batch)]
        self.place += len(batch)
        log_probs = -1.0 + (asked[..., None] == np.arange(len(WORDS)))
        return Scores(log_probs.astype(np.float32), np.ones((len(batch), len(WORDS)), dtype=np.int64))


def batch_of(labels: list[int]) -> list[Example]:
    return [Example((5, number), (), WORDS, label) for number, label in enumerate(labels)]


def losses_of(answers: list[list[int]], labels: list[int], objective: Objective = F1) -> Any:
    engine: Any = Answering(answers)
    return objective(engine, {}, [AT_THETA] * len(answers), batch_of(labels))


def test_every_example_has_the_loss_of_its_probes_batch():
    labels = [0, 0, 1, 2]
    answers = [[0, 0, 1, 2], [0, 1, 1, 3], [3, 3, 3, 3]]
    found = losses_of(answers, labels)
    # of the second: label 0 and 1 have 2/3 each, label 2 and 3 nothing
    assert found.values == pytest.approx(1 - np.array([[1.0] * 4, [1 / 3] * 4, [0.0] * 4]))
    assert found.values.dtype == np.float64
    assert [list(row) for row in found.answers] == answers


def test_a_label_that_is_neither_there_nor_answered_does_not_count():
    assert losses_of([[0, 0, 1]], [0, 0, 1]).values.tolist() == [[0.0] * 3]  # two of four labels, and all are right
    assert losses_of([[2, 2, 2]], [2, 2, 2]).values.tolist() == [[0.0] * 3]


def test_equal_answers_have_equal_losses_to_the_bit():
    """So that a direction along which no answer changes has a slope of 0."""
    values = losses_of([[0, 1, 2, 2, 1, 0, 0]] * 3, [0, 1, 2, 0, 1, 2, 1]).values
    assert len(set(values.mean(axis=1).tolist())) == 1


def test_it_is_one_score_call_the_same_as_of_the_accuracy():
    probes, batch = [AT_THETA, Probe(1, 0.1)], batch_of([0, 1])
    engines: list[Any] = [Answering([[0, 1], [1, 1]]) for _ in range(2)]
    found = [objective(engine, {}, probes, batch) for objective, engine in zip((F1, ACCURACY), engines, strict=True)]
    assert engines[0].calls == engines[1].calls == [({}, probes, batch, False)]
    assert found[0].answers == found[1].answers
    assert found[0].measured == found[1].measured == {}
    assert F1.needs == ACCURACY.needs


def test_the_slope_is_that_of_one_less_f1():
    labels, answers = [0, 0, 1, 1], [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1]]
    engine: Any = Answering(answers)
    estimate = OneSided(0.1).estimate(F1, engine, {}, batch_of(labels), [7, 8])
    base, *others = [1 - macro_f1(labels, row) for row in answers]
    assert isinstance(estimate.update, Slopes)
    assert [slope.value for slope in estimate.update.values] == pytest.approx([(loss - base) / 0.1 for loss in others])
    assert estimate.loss == pytest.approx(np.mean([base, *others]))


def test_an_evaluation_has_the_f1_of_all_its_examples_and_not_a_mean_over_batches():
    """Label 1 is in the first batch, and answered wrongly once in the last, where its F1 is therefore 0."""
    labels, answers = [1] * 5 + [0] * 595, [1] * 5 + [0] * 594 + [1]
    engine: Any = Answering([answers])
    found = evaluate_examples(engine, {}, F1, batch_of(labels))
    assert len(engine.calls) == 3
    assert found.loss == 1 - macro_f1(labels, answers)
    assert found.macro_f1 == macro_f1(labels, answers)
    parts = [losses_of([answers[at : at + 256]], labels[at : at + 256]).values[0] for at in (0, 256, 512)]
    assert found.loss != pytest.approx(np.concatenate(parts).mean(), abs=0.01)


def test_half_precision_is_judged_by_the_accuracy_since_no_example_has_an_f1():
    class HalfPrecise(Answering):
        """Wherever float32 is asked for, one answer of the last probe is another."""

        tensor_shapes: ClassVar[dict[str, Any]] = {}
        spec = None

        def in_float32(self) -> Any:
            return self

        def __enter__(self) -> None:
            self.place = 0
            self.answers[-1, -1] = 1 - self.answers[-1, -1]

        def __exit__(self, *error: object) -> None: ...

    errors = []
    for objective in (F1, ACCURACY):
        engine: Any = HalfPrecise([[0, 1, 0, 1], [0, 1, 1, 1], [1, 1, 0, 1], [0, 0, 0, 1], [1, 1, 0, 0]])
        run: Any = type("Run", (), {})()
        run.estimator, run.objective, run.noise = OneSided(0.1), objective, Probe(0, 0.0).noise
        run.config = make_config({"epsilon": 0.1})
        errors.append(slope_error(run, engine, batch_of([0, 1, 0, 1])))
    assert errors[0] == errors[1]
    assert errors[0] is not None
    assert 0 < errors[0] < 10


@pytest.mark.parametrize("objective", ["accuracy", "f1"])
@pytest.mark.parametrize("estimator", ["lens", "backprop", "jvp"])
def test_an_estimator_that_needs_a_gradient_is_refused(objective, estimator):
    with pytest.raises(InputError, match=f"--estimator {estimator}: --objective {objective} has no gradient"):
        make_config({"objective": objective, "estimator": estimator})


@pytest.mark.parametrize(
    ("task", "what"),
    [("copa", "task copa has options that each record brings"), ("lm", "task lm has no labels")],
)
def test_a_task_without_labels_is_refused(task, what):
    with pytest.raises(InputError, match=rf"--objective f1 needs labels that examples share \(--labels\); {what}"):
        make_objective(make_config({"objective": "f1"}), TASKS[task])


@pytest.mark.parametrize("estimator", ["spsa", "one_sided", "es"])
def test_a_run_trains_on_it_is_resumed_and_its_evaluation_is_that_of_its_adapter(
    opt_dir, reviews_file, tmp_path, estimator
):
    settings: dict[str, Any] = {
        "model": str(opt_dir), "train_data": str(reviews_file), "labels": ("terrible", "great"),
        "invocation": " It was", "objective": "f1", "estimator": estimator, "epsilon": 0.5, "num_steps": 4,
        "eval_steps": 2, "directions": 2, "num_threads": 1, "num_per_class": 9,
    }  # fmt: skip
    whole = mezo_finetune(**settings, output_dir=str(tmp_path / "whole"))
    assert whole.final is not None
    assert whole.final.macro_f1 is not None
    assert whole.final.loss == 1 - whole.final.macro_f1
    entries = read_journal(whole.run_folder / "journal.jsonl")[1]
    assert any(slope.value for entry in entries for slope in entry.slopes)
    with pytest.raises(KeyboardInterrupt):
        mezo_finetune(**settings, output_dir=str(tmp_path / "stopped"), callbacks=[StopAt(2)])
    resume(tmp_path / "stopped")
    assert durable(tmp_path / "stopped") == durable(whole.run_folder)
    assert replace(evaluate(adapter=whole.adapter), predictions=None) == whole.final


def test_without_an_estimator_it_is_not_trained_by_a_gradient(opt_dir, reviews_file, tmp_path):
    result = mezo_finetune(
        str(opt_dir), str(reviews_file), labels=("terrible", "great"), invocation=" It was", objective="f1",
        num_steps=1, directions=2, num_threads=1, output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    assert 'estimator = "one_sided"' in (result.run_folder / "config.toml").read_text()
