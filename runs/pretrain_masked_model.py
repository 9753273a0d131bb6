"""Pretrain a small RoBERTa from a folder of text: tokenizer, weights and held-out loss of masked tokens.

    python runs/pretrain_masked_model.py --text-dir imdb_texts --output-dir output/masked_model

The text is that of the IMDB reviews (Maas et al. 2011), as for the demo's model: of the files unsup and train, copied to a folder of their own.
Whole words are masked, 3 of 10, of whose tokens 8 of 10 become the mask and 1 another token (Devlin et al. 2019;
Wettig et al. 2023 for so many). The state is kept every so many steps, and the same command goes on from there. The
model is written each time, so that it can be used before the end; its weights are a run's own, not promised to the bit.
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
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

VOCAB_SIZE = 8192
CONTEXT = 128
START, PAD, END, UNKNOWN = SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
MASK = "<mask>"
MASKED, KEPT, REPLACED = 0.3, 0.1, 0.1  # of words; of their tokens
IGNORED = -100


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """RoBERTa's: a byte-level BPE, whose mask takes the space in front of it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    mask = AddedToken(MASK, lstrip=True, special=True)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[*SPECIAL_TOKENS, mask], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator(texts, trainer)
    ids = {token: bpe.token_to_id(token) for token in (START, END)}
    bpe.post_processor = processors.RobertaProcessing((END, ids[END]), (START, ids[START]), add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=START, eos_token=END, cls_token=START, sep_token=END, unk_token=UNKNOWN,
        pad_token=PAD, mask_token=mask, model_max_length=CONTEXT,
    )  # fmt: skip


def make_model(tokenizer: PreTrainedTokenizerFast) -> RobertaForMaskedLM:
    """Six layers of width 192, 4.3M parameters. With the usual deviation at the start, 0.02, which is that of wider
    models, attention sees no difference between tokens, and learns nothing for thousands of steps."""
    return RobertaForMaskedLM(
        RobertaConfig(
            vocab_size=len(tokenizer), hidden_size=192, num_hidden_layers=6, num_attention_heads=6,
            intermediate_size=768, max_position_embeddings=CONTEXT + 2, type_vocab_size=1,
            initializer_range=192**-0.5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip


def pack(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """Blocks [block, CONTEXT] of int16: start, the next tokens of a text, end; short pieces of two texts share one."""
    backend = tokenizer.backend_tokenizer
    room = CONTEXT - 2
    pieces = [
        np.asarray([*encoding.ids, tokenizer.eos_token_id])
        for encoding in backend.encode_batch(texts, add_special_tokens=False)
    ]
    tokens = np.concatenate(pieces)
    inner = tokens[: len(tokens) // room * room].reshape(-1, room)
    blocks = np.empty((len(inner), CONTEXT), dtype=np.int16)
    blocks[:, 0], blocks[:, 1:-1], blocks[:, -1] = tokenizer.bos_token_id, inner, tokenizer.eos_token_id
    return blocks


class Masking:
    """Draws which words of blocks are masked."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        self._starts = np.array([token[0] in "ĠĊĉ" or not token[0].isalpha() for token in tokens])
        self._special = np.isin(np.arange(len(tokens)), tokenizer.all_special_ids)
        self._mask, self._size = tokenizer.mask_token_id, len(tokens)

    def draw(self, blocks: np.ndarray, draw: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels [block, CONTEXT]; a label is IGNORED where nothing is masked."""
        words = np.cumsum(self._starts[blocks] | self._special[blocks], axis=1)
        chosen = draw.random((len(blocks), CONTEXT + 1)) < MASKED
        masked = np.take_along_axis(chosen, words, axis=1) & ~self._special[blocks]
        inputs, fate = blocks.astype(np.int64), draw.random(blocks.shape)
        labels = np.where(masked, inputs, IGNORED)
        inputs[masked & (fate >= KEPT + REPLACED)] = self._mask
        other = masked & (fate < REPLACED)
        inputs[other] = draw.integers(len(SPECIAL_TOKENS) + 1, self._size, other.sum())
        return torch.from_numpy(inputs), torch.from_numpy(labels)


def loss_of(model: RobertaForMaskedLM, inputs: torch.Tensor, labels: torch.Tensor, half: bool) -> torch.Tensor:
    """Mean over masked tokens; nothing else goes through the head."""
    there = labels != IGNORED
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        hidden = model.roberta(input_ids=inputs).last_hidden_state[there]
        logits = model.lm_head(hidden)
    return torch.nn.functional.cross_entropy(logits.float(), labels[there])


def batches(blocks: np.ndarray, size: int, first: int, last: int, seed: int) -> Iterator[np.ndarray]:
    """Those of steps `first` to `last`: every block is seen once before any is seen again."""
    per_epoch = len(blocks) // size
    order, drawn = np.empty(0, dtype=np.int64), -1
    for step in range(first, last):
        epoch, place = divmod(step, per_epoch)
        if epoch != drawn:
            order, drawn = np.random.default_rng((seed, epoch)).permutation(len(blocks)), epoch
        yield blocks[order[place * size : (place + 1) * size]]


def pretrain(
    model: RobertaForMaskedLM, tokenizer: PreTrainedTokenizerFast, blocks: np.ndarray, held_out: np.ndarray,
    options: argparse.Namespace,
) -> None:  # fmt: skip
    num_steps = options.num_tokens // (options.batch_size * CONTEXT)
    optimizer = torch.optim.AdamW(group_parameters(model, 0.01), lr=options.learning_rate, betas=(0.9, 0.98))
    state_file, masking, began = options.output_dir / "state.pt", Masking(tokenizer), 0
    if state_file.is_file():
        state: dict[str, Any] = torch.load(state_file)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        began = state["step"]
    start, losses = time.perf_counter(), []
    for step, batch in enumerate(batches(blocks, options.batch_size, began, num_steps, options.seed), start=began):
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / options.num_warmup_steps)
            group["lr"] = options.learning_rate * warm * (1 - step / num_steps)
        inputs, labels = masking.draw(batch, np.random.default_rng((options.seed, 1, step)))
        loss = loss_of(model, inputs, labels, options.bfloat16)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % options.report_every == 0 or step + 1 == num_steps:
            with torch.no_grad():
                inputs, labels = masking.draw(held_out, np.random.default_rng(0))
                of_held_out = loss_of(model, inputs, labels, options.bfloat16).item()
            print(
                f"step {step + 1}/{num_steps}  loss {np.mean(losses):.3f}  held out {of_held_out:.3f} "
                f"(perplexity {math.exp(of_held_out):.1f})  {time.perf_counter() - start:.0f} s",
                flush=True,
            )
            losses = []
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, state_file.with_suffix(".new"))
            state_file.with_suffix(".new").replace(state_file)
            save(model, tokenizer, options.output_dir / "model")


def save(model: RobertaForMaskedLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder that `from_pretrained` reads, with weights in float16."""
    new = folder.with_name("model.new")
    shutil.rmtree(new, ignore_errors=True)
    copy = RobertaForMaskedLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.half().save_pretrained(new)
    tokenizer.save_pretrained(new)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--text-dir", type=Path, required=True, help="folder of *.jsonl, *.jsonl.gz or *.txt, of which none is for a test")
    parser.add_argument("--output-dir", type=Path, required=True, help="for state.pt, and a folder model")
    parser.add_argument("--num-tokens", type=int, default=16_000_000, help="to train on, repeats included")
    parser.add_argument("--num-held-out-texts", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=20, help=f"blocks of {CONTEXT} tokens a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="the peak; it falls to zero")
    parser.add_argument("--num-warmup-steps", type=int, default=300)
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
    held_out, texts = texts[: options.num_held_out_texts], texts[options.num_held_out_texts :]
    folder = options.output_dir / "tokenizer"
    if not folder.is_dir():
        train_tokenizer(texts).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    blocks, known = pack(tokenizer, texts), pack(tokenizer, held_out)[:256]
    model = make_model(tokenizer)
    print(f"{len(texts)} texts, {blocks.size:,} tokens; {model.num_parameters():,} parameters", flush=True)
    pretrain(model, tokenizer, blocks, known, options)


if __name__ == "__main__":
    main()
