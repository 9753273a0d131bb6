"""Tiny models and data made on the spot, so that the tests need neither network nor GPU nor files from elsewhere."""

import gc
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

gc.disable()  # while modules are imported

import pytest
import torch
import transformers
from hypothesis import HealthCheck, settings
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, LlamaConfig, OPTConfig, PreTrainedTokenizerFast

settings.register_profile(
    "zotune", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("zotune")
torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()


def pytest_collection_finish() -> None:
    """What the imports made stays until the end: a run that collects garbage need not look through it each time."""
    gc.freeze()
    gc.enable()


SHARED = Path(__file__).parents[2] / "shared"  # real models and data, where they are at hand
VOCABULARY = 320
CONTEXT = 64

GOOD = ["a great film", "a joy to watch", "warm and clever", "I loved the cast", "the ending is perfect"]
BAD = ["a terrible film", "a bore to watch", "cold and stupid", "I hated the cast", "the ending is a mess"]
REVIEWS: list[dict[str, Any]] = [
    {"text": f"{text}, {place}", "label": label}
    for place in ("said my sister", "at the old cinema", "on a rainy day", "again and again")
    for pair in zip(BAD, GOOD, strict=True)
    for label, text in enumerate(pair)
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    bpe = ByteLevelBPETokenizer()
    texts = [review["text"] + " It was great. It was terrible." for review in REVIEWS]
    bpe.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=["<pad>", "</s>"], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, pad_token="<pad>", bos_token="</s>", eos_token="</s>", model_max_length=CONTEXT
    )


CONFIGS = {
    "opt": lambda: OPTConfig(
        vocab_size=VOCABULARY, hidden_size=16, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=CONTEXT, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    ),
    "llama": lambda: LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=CONTEXT, pad_token_id=0, bos_token_id=1,
        eos_token_id=1,
    ),
}  # fmt: skip
TARGETS = {"opt": ("q_proj", "v_proj"), "llama": ("q_proj", "v_proj"), "gpt2": ("c_attn",)}
KINDS_AND_SCOPES = [  # where each takes long, the fast tests leave one kind out
    pytest.param((kind, scope), marks=[pytest.mark.slow] if kind == "gpt2" else [], id=f"{kind}-{scope}")
    for kind in TARGETS
    for scope in ("activated", "everywhere")
]


def make_model(kind: str) -> transformers.PreTrainedModel:
    """A random model whose weights are large enough for its outputs to differ from token to token."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return model.eval()


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """The command says where its messages go; that ends with the test."""
    logger = logging.getLogger("zotune")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture(scope="module")
def quick_start() -> Iterator[None]:
    """Processes that are started here spend less time on imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).with_name("quick_start")), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session")
def model_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny models with their tokenizer, by architecture."""
    folders = {}
    for kind in CONFIGS:
        folders[kind] = tmp_path_factory.mktemp("models") / kind
        make_model(kind).save_pretrained(folders[kind])
        make_tokenizer().save_pretrained(folders[kind])
    return folders


@pytest.fixture(scope="session")
def opt_dir(model_dirs: dict[str, Path]) -> Path:
    return model_dirs["opt"]


@pytest.fixture(scope="session")
def reviews_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty labelled reviews as JSON lines."""
    path = tmp_path_factory.mktemp("data") / "reviews.jsonl"
    path.write_text("".join(json.dumps(review) + "\n" for review in REVIEWS))
    return path
