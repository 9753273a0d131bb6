"""An adapter put into the weights of its base model, by PEFT's `merge_and_unload`, and compared with the adapter.

W + scaling * B A, in float32, whatever precision the result is stored in. What cannot be equal is refused: see
`Source.mergeable`.
"""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from zotune.adapter.base import Base
from zotune.engine.torch.identity import weights_identity
from zotune.engine.torch.loading import DTYPES
from zotune.errors import InputError
from zotune.export.source import Source
from zotune.files import replace_folder
from zotune.values import path_of

logger = logging.getLogger("zotune")

TEXTS = (
    "A warm and clever film. It was great",
    "Question: What is the capital of France?\nAnswer: Paris",
    "The committee will meet on 12 May to discuss a budget of 3,500 euros.",
    "def mean(values):\n    return sum(values) / len(values)\n",
)
MOST_TOKENS = 32  # of a text
FLOAT32_LIMIT = 1e-3  # of a difference of log-probabilities; rounding gives about 1e-5
HALF_SHARE = 0.1  # of what the adapter itself changes: what storing the weights in half precision may cost


@dataclass(frozen=True)
class Check:
    """How far a merged model is from the adapter, and how far the adapter is from its base model: the largest
    difference of a log-probability, over `num_places` places in TEXTS and all tokens (or labels)."""

    difference: float
    moved: float
    num_places: int

    def limit(self, dtype: str) -> float:
        return FLOAT32_LIMIT if dtype == "float32" else max(FLOAT32_LIMIT, HALF_SHARE * self.moved)


def merged_model(source: Source, what: str = "merge") -> tuple[PreTrainedModel, Any, "Scores", "Scores"]:
    """The base model with the adapter in its weights, the tokenizer, and the scores of the base and of the adapter.

    Raises:
        InputError: no model can be equal to the adapter.
    """
    from peft import PeftModel

    source.mergeable(what)
    model, tokenizer = source.load(), source.tokenizer()
    now = Base(weights_identity(model), "float32", None)
    if source.base and source.base.differs(now):
        logger.warning(
            "the weights of %s are not those that the adapter %s was trained on", source.model_name, source.path
        )
    bare = log_probs(model, tokenizer)
    with warnings.catch_warnings():  # PEFT asks the model about what is to have another name
        warnings.simplefilter("ignore", FutureWarning)
        adapted: Any = PeftModel.from_pretrained(model, str(source.path))
    adapted.eval()
    wanted = log_probs(adapted, tokenizer)
    merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    return merged, tokenizer, bare, wanted


def merge(source: Source, output: str | Path, dtype: str = "float32") -> Check:
    """Write the merged model as a folder of transformers, whole and checked, or not at all.

    Args:
        dtype: the precision that the weights are stored in.

    Raises:
        InputError: the folder is there, no model can be equal to the adapter, or the one that was read back is not.
    """
    folder = Path(path_of(output, "--output-dir"))
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"--output-dir: {folder} exists; choose another folder")
    if not source.is_adapter:
        raise InputError(f"merge: {source.path} is a whole model already; there is no adapter to merge")
    model, tokenizer, bare, wanted = merged_model(source)

    checks: list[Check] = []

    def write(new: Path) -> None:
        nonlocal model
        model.to(DTYPES[dtype]).save_pretrained(new)  # type: ignore[arg-type]  # the library's decorator hides it
        tokenizer.save_pretrained(new)
        del model
        check = _compared(bare, wanted, log_probs(source.load(new), tokenizer))
        checks.append(check)
        if not check.difference <= check.limit(dtype):
            raise InputError(
                f"merge: the merged model in {dtype} is up to {check.difference:.2g} away from the adapter in a "
                f"log-probability, where {check.limit(dtype):.2g} is allowed (the adapter changes them by up to "
                f"{check.moved:.2g}); use --dtype float32"
            )

    try:
        replace_folder(folder, write)
    except OSError as error:
        raise InputError(f"--output-dir: cannot write {folder}: {error.strerror}") from error
    return checks[0]


Scores = list[torch.Tensor]


@torch.inference_mode()
def log_probs(model: Any, tokenizer: Any) -> Scores:
    """The log-probabilities that a model gives on TEXTS: of the next token at every place, or of the labels."""
    found = []
    for text in TEXTS:
        tokens = tokenizer(text, truncation=True, max_length=MOST_TOKENS, return_tensors="pt")
        logits = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).logits
        found.append(logits.float().log_softmax(-1)[0])
    return found


def _compared(bare: Scores, wanted: Scores, found: Scores) -> Check:
    def largest(one: Scores, other: Scores) -> float:
        return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))

    return Check(largest(found, wanted), largest(wanted, bare), sum(each.numel() // each.shape[-1] for each in wanted))
