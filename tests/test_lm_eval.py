"""Adapters in lm-evaluation-harness score and write as its own `hf` model has them."""

import json
from typing import Any

import pytest

from tests.conftest import REVIEWS
from zotune import mezo_finetune

lm_eval = pytest.importorskip("lm_eval", reason='needs pip install "zotune[lm-eval]"')
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TASKS: dict[str, dict[str, Any]] = {  # of each kind of request one
    "choice": {
        "output_type": "multiple_choice", "doc_to_text": "{{text}} It was", "doc_to_target": "label",
        "doc_to_choice": ["terrible", "great and fine"], "num_fewshot": 1, "fewshot_split": "test",
    },
    "writing": {
        "output_type": "generate_until", "doc_to_text": "{{text}} It was", "doc_to_target": "great",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 5}, "metric_list": [{"metric": "exact_match"}],
    },
    "likelihood": {"output_type": "loglikelihood", "doc_to_text": "{{text}}", "doc_to_target": " It was great"},
    "rolling": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}  # fmt: skip


@pytest.mark.parametrize("scope", ["activated", "everywhere", None])
def test_all_kinds_of_requests_get_the_answers_of_the_harness_own_model(scope, opt_dir, tmp_path):
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from zotune.lm_eval import ZotuneLM

    adapter = None
    if scope is not None:
        adapter = str(
            mezo_finetune(
                str(opt_dir), REVIEWS, output_dir=tmp_path / "run", labels=("terrible", "great"), invocation=" It was",
                scope=scope, num_steps=4, batch_size=8, learning_rate=0.05, num_threads=1,
            ).adapter
        )  # fmt: skip
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(review) + "\n" for review in REVIEWS[:6]))
    for name, task in TASKS.items():
        whole = {
            "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test", **task,
        }  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(json.dumps(whole))  # which is YAML, too
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    settings: dict[str, Any] = {"dtype": "float32", "device": "cpu", "batch_size": 1}
    ours = ZotuneLM(adapter=adapter, model=str(opt_dir), dtype="float32", device="cpu", batch_size=4)
    theirs = HFLM(pretrained=str(opt_dir), peft=adapter, **settings)
    found = [
        lm_eval.simple_evaluate(
            model, tasks=list(TASKS), task_manager=manager, log_samples=True, bootstrap_iters=0, limit=6
        )["samples"]
        for model in (ours, theirs)
    ]
    for name in TASKS:
        answers = [
            [response for sample in sorted(samples[name], key=lambda sample: sample["doc_id"])
             for (response, *_) in sample["resps"]]
            for samples in found
        ]  # fmt: skip
        assert len(answers[0]) >= 6
        for mine, other in zip(*answers, strict=True):
            if isinstance(mine, str):
                assert mine == other
            elif isinstance(mine, tuple | list):
                assert float(mine[0]) == pytest.approx(float(other[0]), abs=2e-4)  # sums over tokens in float32
                assert str(mine[1]) == str(other[1])
            else:
                assert float(mine) == pytest.approx(float(other), abs=2e-4)
    if scope == "activated":  # contexts begin alike, and are asked for twice
        assert ours.engine.stats.tokens_reused > 0
