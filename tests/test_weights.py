"""Records with a weight: what multiplies their loss, whatever estimator and engine there are."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import REVIEWS
from zotune import InputError, evaluate, mezo_finetune
from zotune.zo.objectives import ScoredObjective, cross_entropy, token_nll
from zotune.zo.protocol import Example, Scores

TASK: dict[str, Any] = {"invocation": " It was", "labels": ["terrible", "great"]}
RUN: dict[str, Any] = {
    "num_steps": 3,
    "eval_steps": 3,
    "batch_size": 4,
    "dtype": "float32",
    "init_lora_weights": "kaiming",
}
WEIGHTS = [1.0, -1.0, 0.0, 2.5]


def plain_losses(objective: ScoredObjective, log_probs: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Written out, for labels that are 1 everywhere."""
    means = log_probs / counts
    return -means[:, 0] if objective.takes_labels is False else -torch.log_softmax(means, dim=1)[:, 1]


@pytest.mark.parametrize("objective", [cross_entropy, token_nll])
def test_weights_multiply_losses_and_what_autograd_says_of_them(objective: ScoredObjective) -> None:
    draw = np.random.default_rng(3)
    width = 1 if objective.takes_labels is False else 2
    log_probs = draw.normal(size=(4, width)) - 3
    counts = draw.integers(1, 5, size=(4, width))
    tangents = draw.normal(size=(4, width)).astype(np.float32)
    batch = [Example((1,), (), ((2,),) * width, label=1, columns={"reward": weight}) for weight in WEIGHTS]
    leaf = torch.tensor(log_probs.astype(np.float32), dtype=torch.float64, requires_grad=True)
    expected = torch.tensor(WEIGHTS) * plain_losses(objective, leaf, torch.tensor(counts))
    (gradient,) = torch.autograd.grad(expected.mean(), leaf, retain_graph=True)
    scores = Scores(log_probs[None].astype(np.float32), counts, tangents[None])
    weighted = replace(objective, weight_field="reward")
    seen: list[np.ndarray] = []

    def of_scores(theta: Any, batch: Any, cotangents: Any, normalized: bool) -> tuple[Scores, dict[str, np.ndarray]]:
        seen.append(cotangents(scores))
        return scores, {}

    loss, _ = weighted.gradient(of_scores, {}, batch)
    assert loss == pytest.approx(expected.mean().item(), abs=1e-12)
    np.testing.assert_allclose(seen[0], gradient.numpy(), atol=1e-12)

    class Engine:
        def score(self, *args: Any) -> Scores:
            return scores

    found = weighted(Engine(), {}, [], batch)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.values[0], expected.detach().numpy(), atol=1e-12)
    for row, slope in enumerate(found.derivatives[0]):  # type: ignore[index]
        (of_row,) = torch.autograd.grad(expected[row], leaf, retain_graph=True)
        assert slope == pytest.approx((of_row[row] * torch.tensor(tangents[row])).sum().item(), abs=1e-6)


def journal(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()[1:]]


def trained(model: Path, records: list[dict[str, Any]], output: Path, **settings: Any) -> Any:
    return mezo_finetune(model, records, eval_data=records[:4], output_dir=output, **{**RUN, **settings})


def with_reward(rows: Sequence[Mapping[str, Any]], weight: Any) -> list[dict[str, Any]]:
    return [{**row, "reward": weight} for row in rows]


@pytest.mark.parametrize("settings", [{"estimator": "spsa"}, {"estimator": "lens"}, {"estimator": "backprop"}], ids=str)
def test_a_run_with_weights_is_that_of_its_losses_times_them(
    settings: dict[str, Any], opt_dir: Path, tmp_path: Path
) -> None:
    """By plain descent, since Adam does not see how large a gradient is."""
    settings = {**settings, **TASK, "optimizer": "sgd", "num_steps": 1, "learning_rate": 1e-2}

    weighted: dict[str, Any] = {"fields": ["weight=reward"]}

    def loss_after(name: str, records: list[dict[str, Any]], **more: Any) -> tuple[float, Any]:
        found = trained(opt_dir, records, tmp_path / name, **{**settings, **more})
        after = evaluate(adapter=found.run_folder / "adapter", eval_data=with_reward(REVIEWS, 1), **weighted)
        return journal(found.run_folder)[0]["loss"], after.loss

    (plain, after), (one, again) = loss_after("a", REVIEWS), loss_after("b", with_reward(REVIEWS, 1), **weighted)
    assert (plain, after) == (one, again)
    negative, away = loss_after("c", with_reward(REVIEWS, -1.0), **weighted)
    nothing, still = loss_after("d", with_reward(REVIEWS, 0), **weighted)
    assert negative == -plain
    assert nothing == 0.0
    assert away > still > after, "a negative reward pushes away"


def test_a_completion_that_users_liked_becomes_more_likely_and_another_less(opt_dir: Path, tmp_path: Path) -> None:
    prompts = [f"Tell me about {name}." for name in ("cats", "dogs", "rain", "snow")]
    liked = [{"prompt": prompt, "completion": " It was a great story.", "reward": 1.0} for prompt in prompts]
    disliked = [{"prompt": prompt, "completion": " Nobody had the money.", "reward": -0.5} for prompt in prompts]
    run = trained(
        opt_dir, liked + disliked, tmp_path / "run", fields=["weight=reward"], num_steps=8, batch_size=8,
        learning_rate=1e-2, estimator="lens",
    )  # fmt: skip

    def nll(records: list[dict[str, Any]], **model: Any) -> float:
        unweighted = [{**record, "reward": 1.0} for record in records]
        return evaluate(eval_data=unweighted, fields=["weight=reward"], **model).loss

    adapted, bare = {"adapter": run.run_folder / "adapter"}, {"model": opt_dir}
    assert nll(liked, **adapted) < nll(liked, **bare) - 0.01
    assert nll(disliked, **adapted) > nll(disliked, **bare)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("good", "should be a number, the weight of the record, got 'good'"),
        (True, "should be a number"),
        (float("nan"), "should be a number"),
        (None, "should be a number"),
    ],
)
def test_a_weight_that_is_no_number_is_refused_with_its_place(value: Any, said: str, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    rows = [*with_reward(REVIEWS[:3], 1.0), {**REVIEWS[3], "reward": value}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=f"data.jsonl:4: field 'reward' {said}"):
        mezo_finetune(tmp_path / "no model", data, fields=["weight=reward"], eval_data=data, **TASK)


def test_weights_without_a_field_or_a_loss_are_refused(opt_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no field 'stars' \(--fields weight=stars\)"):
        trained(opt_dir, REVIEWS, tmp_path / "a", fields=["weight=stars"], **TASK)
    with pytest.raises(InputError, match="--fields weight=reward: --objective accuracy has no loss of a record"):
        trained(
            opt_dir, with_reward(REVIEWS, 1), tmp_path / "b", fields=["weight=reward"], objective="accuracy", **TASK
        )


def test_a_run_does_not_go_on_with_other_weights(opt_dir: Path, tmp_path: Path) -> None:
    from zotune import resume

    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in with_reward(REVIEWS, 1)))
    settings = {**RUN, **TASK, "estimator": "spsa", "fields": ["weight=reward"]}
    run = mezo_finetune(opt_dir, data, output_dir=tmp_path / "run", **settings)
    (run.run_folder / "summary.json").unlink()
    data.write_text("".join(json.dumps(row) + "\n" for row in with_reward(REVIEWS, 2)))
    with pytest.raises(InputError, match="data"):
        resume(run.run_folder)
