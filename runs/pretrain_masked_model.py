"""Pretrain a small masked language model: the demo's model, made to see both sides of a word.

    python runs/pretrain_masked_model.py --text-dir imdb_texts --output-dir output/masked_model

A RoBERTa with its norms in front (RobertaPreLayerNormForMaskedLM) has the same blocks as OPT, so it starts from the
weights of the demo's model (4.3M parameters, see pretrain_demo_model.py) and learns to fill in masks; docs/decisions.md
says why not from random ones. The text is that of the IMDB reviews
(Maas et al. 2011): the files unsup and train, copied to a folder of their own; their labels are unused. Whole words are
masked, 1 of 4, of whose tokens 8 of 10 become the mask and 1 another token (Devlin et al. 2019; Wettig et al. 2023 for
so many). The state is kept every so many steps, and the same command goes on from there. The model is written each
time, so that it can be used before the end; its weights are a run's own, not promised to the bit.
"""

import argparse
import json
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
from tokenizers import AddedToken, Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForMaskedLM,
)

from zotune.data.demo import demo_path

CONTEXT = 64
MASKED, KEPT, REPLACED = 0.25, 0.1, 0.1  # of words; of their tokens
IGNORED = -100
IN_BLOCK = {  # OPT's name of a module in a block: RoBERTa's
    "self_attn_layer_norm": "attention.LayerNorm", "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key", "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense", "final_layer_norm": "intermediate.LayerNorm",
    "fc1": "intermediate.dense", "fc2": "output.dense",
}  # fmt: skip


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The demo's, whose mask takes the space in front of it, as RoBERTa's does."""
    before = AutoTokenizer.from_pretrained(demo_path("model"))
    content = json.loads(before.backend_tokenizer.to_str())
    for token in content["added_tokens"]:
        token["lstrip"] = token["content"] == before.mask_token
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), bos_token=before.bos_token,
        eos_token=before.eos_token, unk_token=before.unk_token, pad_token=before.pad_token,
        mask_token=AddedToken(before.mask_token, lstrip=True, special=True), model_max_length=CONTEXT,
    )  # fmt: skip


def make_model(tokenizer: PreTrainedTokenizerFast) -> RobertaPreLayerNormForMaskedLM:
    """With the weights of the demo's model."""
    opt = AutoModelForCausalLM.from_pretrained(demo_path("model"), dtype=torch.float32)
    config, decoder = opt.config, opt.model.decoder
    model = RobertaPreLayerNormForMaskedLM(
        RobertaPreLayerNormConfig(
            vocab_size=config.vocab_size, hidden_size=config.hidden_size, num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads, intermediate_size=config.ffn_dim,
            hidden_act=config.activation_function, max_position_embeddings=CONTEXT + tokenizer.pad_token_id + 1,
            type_vocab_size=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    base = model.roberta_prelayernorm
    with torch.no_grad():
        base.embeddings.word_embeddings.weight.copy_(decoder.embed_tokens.weight)
        first = tokenizer.pad_token_id + 1
        base.embeddings.position_embeddings.weight[first:] = decoder.embed_positions.weight[2 : 2 + CONTEXT]
        base.embeddings.token_type_embeddings.weight.zero_()
        # The norm behind the embeddings, which OPT lacks, leaves them about as large as they were.
        base.embeddings.LayerNorm.weight.fill_(float(decoder.embed_tokens.weight.std()))
        for theirs, ours in zip(decoder.layers, base.encoder.layer, strict=True):
            for name, other in IN_BLOCK.items():
                ours.get_submodule(other).load_state_dict(theirs.get_submodule(name).state_dict())
        base.LayerNorm.load_state_dict(decoder.final_layer_norm.state_dict())
    return model


def pack(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """Blocks [block, CONTEXT] of int16: the start token, and the next tokens of a text; where one ends, the next."""
    backend, room = tokenizer.backend_tokenizer, CONTEXT - 1
    pieces = [
        np.asarray([*encoding.ids, tokenizer.eos_token_id])
        for encoding in backend.encode_batch(texts, add_special_tokens=False)
    ]
    tokens = np.concatenate(pieces)
    inner = tokens[: len(tokens) // room * room].reshape(-1, room)
    blocks = np.empty((len(inner), CONTEXT), dtype=np.int16)
    blocks[:, 0], blocks[:, 1:] = tokenizer.bos_token_id, inner
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
        inputs[other] = draw.integers(len(np.flatnonzero(self._special)), self._size, other.sum())
        return torch.from_numpy(inputs), torch.from_numpy(labels)


def loss_of(
    model: RobertaPreLayerNormForMaskedLM, inputs: torch.Tensor, labels: torch.Tensor, half: bool
) -> torch.Tensor:
    """Mean over masked tokens; nothing else goes through the head."""
    there = labels != IGNORED
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        hidden = model.roberta_prelayernorm(input_ids=inputs).last_hidden_state[there]
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
    model: RobertaPreLayerNormForMaskedLM, tokenizer: PreTrainedTokenizerFast, blocks: np.ndarray, held_out: np.ndarray,
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


def save(model: RobertaPreLayerNormForMaskedLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder that `from_pretrained` reads, with weights in float16."""
    new = folder.with_name("model.new")
    shutil.rmtree(new, ignore_errors=True)
    copy = RobertaPreLayerNormForMaskedLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.half().save_pretrained(new)
    tokenizer.save_pretrained(new)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--text-dir",
        type=Path,
        required=True,
        help="folder of *.jsonl, *.jsonl.gz or *.txt, of which none is for a test",
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="for state.pt, and a folder model")
    parser.add_argument("--num-tokens", type=int, default=16_000_000, help="to train on, repeats included")
    parser.add_argument("--num-held-out-texts", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=40, help=f"blocks of {CONTEXT} tokens a step")
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
    tokenizer = make_tokenizer()
    blocks, known = pack(tokenizer, texts), pack(tokenizer, held_out)[:256]
    model = make_model(tokenizer)
    print(f"{len(texts)} texts, {blocks.size:,} tokens; {model.num_parameters():,} parameters", flush=True)
    pretrain(model, tokenizer, blocks, known, options)


if __name__ == "__main__":
    main()
