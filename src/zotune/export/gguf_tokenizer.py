"""A tokenizer of transformers as GGUF files have it: byte-level BPE, with its special tokens and its chat template.

How a text is cut before BPE is a name in these files (`tokenizer.ggml.pre`), where tokenizer.json has the steps
themselves. Those that are known here are told by their steps; others are refused, since a text would be cut otherwise.
"""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from zotune.engine.torch.gguf import source_of
from zotune.errors import InputError

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CUTS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (_LLAMA3, "bytes"): "llama-bpe",
    (_LLAMA3.replace("{1,3}", ""), "bytes"): "qwen2",
}
"""Steps of a tokenizer.json -> the name of the same in llama.cpp."""
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # types of tokens


def add_tokenizer(writer: Any, tokenizer: Tokenizer, num_embeddings: int, folder: Path) -> None:
    """Write a tokenizer into a GGUF file.

    Args:
        num_embeddings: how many tokens the model has; those that the tokenizer has not are written as unused.
        folder: the model's; of one that was a GGUF file itself, the cut is named as it was there.

    Raises:
        InputError: it is of another kind, or has more tokens than the model.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    found = json.loads(backend.to_str()) if backend is not None else {"model": {}}
    model = found["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise InputError(f"--gguf: the tokenizer of {folder} is no byte-level BPE, the one kind that is written here")
    tokens = {place: text for text, place in tokenizer.get_vocab().items()}
    if max(tokens) >= num_embeddings:
        raise InputError(f"--gguf: the tokenizer of {folder} has more tokens than the model has embeddings")
    added = {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in found["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_cut_in_file(folder) or _cut(found, folder))
    writer.add_token_list([tokens.get(place, f"[PAD{place}]") for place in range(num_embeddings)])
    writer.add_token_types([added.get(place, NORMAL) if place in tokens else UNUSED for place in range(num_embeddings)])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    for name in ("bos", "eos", "unk", "pad"):
        if (place := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(place)
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(len(ids) > 1 and ids[-1] == tokenizer.eos_token_id)
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.get_chat_template())


def _cut_in_file(folder: Path) -> str | None:
    """The name of the cut in the GGUF file that a model was made of."""
    file = source_of(folder)
    if file is None:
        return None
    from gguf import GGUFReader

    field = GGUFReader(file).get_field("tokenizer.ggml.pre")
    return None if field is None else str(field.contents())


def _cut(found: dict[str, Any], folder: Path) -> str:
    first = found.get("pre_tokenizer") or {}
    steps = tuple(map(_step, first["pretokenizers"] if first.get("type") == "Sequence" else [first]))
    if steps not in CUTS:
        raise InputError(
            f"--gguf: the tokenizer of {folder} cuts texts in a way that is not known here ({', '.join(steps)}); "
            "llama.cpp's own convert_hf_to_gguf.py may know it"
        )
    return CUTS[steps]


def _step(step: dict[str, Any]) -> str:
    """A step in one word; the regular expression of one that splits by it."""
    kind = str(step.get("type"))
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return "ByteLevel" if step.get("use_regex", True) else "bytes"
    if kind == "Digits" and step.get("individual_digits"):
        return kind
    if kind == "Split" and step.get("behavior") == "Isolated":
        return str(step["pattern"].get("Regex"))
    return f"{kind} with settings of its own"
