"""Tiny masked language models of every family, and a tokenizer as RoBERTa's, made on the spot."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerFast

from tests.conftest import REVIEWS

VOCABULARY, CONTEXT = 480, 48
WORDS = "terrible great bad okay good Yes Maybe No Expression Entity Description Human Location Number"
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": CONTEXT + 2, "pad_token_id": 1,
}  # fmt: skip
POSITIONS: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
# Family -> class of its configuration, what it has of its own, and the modules that are adapted.
FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "roberta": ("RobertaConfig", {"type_vocab_size": 1}, ("query", "value")),
    "xlm-roberta": ("XLMRobertaConfig", {"type_vocab_size": 1}, ("query", "value")),
    "bert": ("BertConfig", {}, ("query", "value")),
    "electra": ("ElectraConfig", {"embedding_size": 8}, ("query", "value")),
    "modernbert": (
        "ModernBertConfig",
        {"local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 0, "sep_token_id": 2,
         "bos_token_id": 0, "eos_token_id": 2},
        ("Wqkv",),
    ),
    "deberta": ("DebertaConfig", POSITIONS, ("in_proj",)),
    "deberta-v2": (
        "DebertaV2Config", {**POSITIONS, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True},
        ("query_proj", "value_proj"),
    ),
    "deberta-v3": ("DebertaV2Config", {**POSITIONS, "legacy": False}, ("query_proj", "value_proj")),
    "distilbert": (
        "DistilBertConfig", {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32}, ("q_lin", "v_lin")
    ),
}  # fmt: skip


def make_masked(family: str, auto: Any = AutoModelForMaskedLM, **more: Any) -> PreTrainedModel:
    """A model with weights so large that every token matters."""
    kind, own, _ = FAMILIES[family]
    torch.manual_seed(0)
    model: PreTrainedModel = auto.from_config(getattr(transformers, kind)(**{**SIZES, **own, **more}))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def make_tokenizer(pairs_of_kinds: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which WORDS are single tokens behind a space; with `pairs_of_kinds`, pairs have token types,
    as BERT's have."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    mask = AddedToken("<mask>", lstrip=True, special=True)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "<pad>", "</s>", "<unk>", mask], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator([*(f" {WORDS}",) * 50, *(f" {review['text']}" for review in REVIEWS)], trainer)
    if pairs_of_kinds:
        bpe.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 0))
    else:
        bpe.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", unk_token="<unk>",
        pad_token="<pad>", mask_token=mask, model_max_length=CONTEXT,
        **({"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]} if pairs_of_kinds else {}),
    )  # fmt: skip


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
