"""The built-in demo: data that no single word separates, a model that learns from it, scripts that made both."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from zotune import mezo_finetune
from zotune.data.demo import demo_path
from zotune.engine.torch.loading import load_model, load_tokenizer

ROOT = Path(__file__).parents[1]


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in Path(demo_path(name)).read_text().splitlines()]


def test_the_reviews_are_balanced_and_held_out():
    train, held_out = read("train.jsonl"), read("eval.jsonl")
    assert len(train) >= 300
    assert len(held_out) >= 400
    for rows in (train, held_out):
        assert Counter(row["label"] for row in rows) == {0: len(rows) // 2, 1: len(rows) // 2}
    assert not {row["text"] for row in train} & {row["text"] for row in held_out}


def test_no_single_word_tells_the_label():
    rows = [(set(re.findall(r"[\w']+", row["text"].lower())), row["label"]) for row in read("eval.jsonl")]
    words = set.union(*(words for words, _ in rows))
    best = max(abs(sum((word in words) == label for words, label in rows) / len(rows) - 0.5) for word in words)
    assert 0.5 + best < 0.65


def test_the_script_writes_the_shipped_reviews(tmp_path):
    script = ROOT / "runs" / "make_demo_reviews.py"
    subprocess.run([sys.executable, script, "--output-dir", tmp_path], check=True, capture_output=True)
    for name in ("train.jsonl", "eval.jsonl"):
        assert (tmp_path / name).read_text() == Path(demo_path(name)).read_text()


def test_the_model_is_small_and_of_opts_architecture():
    folder = Path(demo_path("model"))
    assert (folder / "model.safetensors").stat().st_size <= 9_000_000
    model = load_model(str(folder), "float32", "cpu")
    assert type(model).__name__ == "OPTForCausalLM"
    assert model.config.activation_function == "relu"
    assert model.dtype == torch.float32
    tokenizer = load_tokenizer(str(folder))
    assert len(tokenizer) == model.config.vocab_size


@pytest.mark.slow
def test_a_short_run_lowers_the_held_out_loss(tmp_path):
    """A hundred steps of six hundred. The margin is half of the smallest fall seen over seeds 0, 1 and 2."""
    result = mezo_finetune(num_steps=100, eval_steps=100, max_eval_samples=200, output_dir=str(tmp_path / "run"))
    assert result.initial
    assert result.final
    assert result.final.loss < result.initial.loss - 0.02


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_pretraining_runs_on_a_folder_of_text(tmp_path):
    """Too few tokens to learn from: shows that the script goes from text to a model that loads."""
    texts = tmp_path / "texts"
    texts.mkdir()
    rows = [*read("train.jsonl"), *read("eval.jsonl")] * 3
    (texts / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, ROOT / "runs" / "pretrain_demo_model.py", "--text-dir", texts, "--output-dir",
               tmp_path / "model", "--num-tokens", "4096", "--batch-size", "2"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    model = load_model(str(tmp_path / "model"), "float32", "cpu")
    shipped = json.loads(Path(demo_path("model", "config.json")).read_text())
    assert model.config.num_hidden_layers == shipped["num_hidden_layers"]
    assert model.config.hidden_size == shipped["hidden_size"]
