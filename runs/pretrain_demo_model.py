"""Pretrain a model like the demo's from a folder of text: tokenizer, weights and held-out perplexity.

The shipped model (src/zotune/demo/model) saw the texts of the IMDB reviews (Maas et al. 2011; the unsup and
train files, 75,000 texts; labels unused, test held out): 30M tokens, validation perplexity 78.5 a token.
Its weights are of this recipe's shape (architecture, tokenizer, corpus, number of tokens); a run of this
script is not promised to reproduce them bit for bit, nor their perplexity to the last digit. It does no
fine-tuning and reads no labels.

    python runs/pretrain_demo_model.py --text-dir imdb_texts --output-dir output/demo_model
"""

import argparse
import gzip
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GenerationConfig,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

VOCAB_SIZE = 8192
CONTEXT = 512
PAD, BOUNDARY, UNKNOWN, MASK = SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>", "<mask>")


def read_texts(folder: Path) -> Iterator[str]:
    """Every `text` field of *.jsonl and *.jsonl.gz, and every *.txt file as one text, by file name."""
    for path in sorted(folder.iterdir()):
        if path.name.endswith((".jsonl", ".jsonl.gz")):
            opener = gzip.open if path.suffix == ".gz" else open
            with opener(path, "rt", encoding="utf-8") as lines:
                yield from (json.loads(line)["text"] for line in lines if line.strip())
        elif path.suffix == ".txt":
            yield path.read_text(encoding="utf-8")


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE; like OPT's, it opens every text with `</s>`, which is also the end-of-text token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOUNDARY} $A",
        pair=f"{BOUNDARY} $A {BOUNDARY} $B",
        special_tokens=[(BOUNDARY, bpe.token_to_id(BOUNDARY))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOUNDARY,
        eos_token=BOUNDARY,
        unk_token=UNKNOWN,
        pad_token=PAD,
        mask_token=MASK,
        model_max_length=CONTEXT,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> OPTForCausalLM:
    """OPT like facebook/opt-125m (pre-norm, ReLU, tied embeddings): 6 layers, width 192, 4.3M parameters."""
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            word_embed_proj_dim=192,
            num_hidden_layers=6,
            num_attention_heads=6,
            ffn_dim=768,
            max_position_embeddings=CONTEXT,
            dropout=0.0,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def pack(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """All texts end to end, cut into whole blocks: int64 [block, CONTEXT]; a partial one is dropped."""
    encodings = tokenizer.backend_tokenizer.encode_batch(texts)
    tokens = np.concatenate([np.asarray(encoding.ids, dtype=np.int64) for encoding in encodings])
    num_blocks = len(tokens) // CONTEXT
    if num_blocks == 0:
        raise ValueError(
            f"{len(texts)} texts make {len(tokens)} tokens, but one block takes {CONTEXT}: "
            "add text to --text-dir or change --num-held-out-texts"
        )
    return torch.from_numpy(tokens[: num_blocks * CONTEXT].reshape(num_blocks, CONTEXT))


def draw_batches(blocks: torch.Tensor, batch_size: int, num_steps: int, seed: int) -> Iterator[torch.Tensor]:
    """`num_steps` batches [batch_size, CONTEXT]; every block is seen once before any is seen again."""
    generator = torch.Generator().manual_seed(seed)
    queue = torch.empty(0, dtype=torch.int64)
    for _ in range(num_steps):
        while len(queue) < batch_size:
            queue = torch.cat([queue, torch.randperm(len(blocks), generator=generator)])
        yield blocks[queue[:batch_size]]
        queue = queue[batch_size:]


@torch.inference_mode()
def measure_perplexity(model: OPTForCausalLM, blocks: torch.Tensor, batch_size: int) -> float:
    """exp of the mean loss a token over `blocks`."""
    model.eval()
    total = 0.0
    for batch in blocks.split(batch_size):
        batch = batch.to(model.device)
        total += model(input_ids=batch, labels=batch).loss.item() * len(batch)
    model.train()
    return math.exp(total / len(blocks))


def group_parameters(model: OPTForCausalLM, weight_decay: float) -> list[dict]:
    """Weight decay on matrices alone: on biases and layer norms it only slows the fit."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def pretrain(model: OPTForCausalLM, blocks: torch.Tensor, held_out: torch.Tensor, options: argparse.Namespace) -> None:
    num_steps = max(1, options.num_tokens // (options.batch_size * CONTEXT))
    num_warmup_steps = min(options.num_warmup_steps, num_steps // 10)
    optimizer = torch.optim.AdamW(
        group_parameters(model, options.weight_decay), lr=options.learning_rate, betas=(0.9, 0.95)
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps, num_steps)
    start = time.perf_counter()
    model.train()
    for step, batch in enumerate(draw_batches(blocks, options.batch_size, num_steps, options.seed), start=1):
        batch = batch.to(model.device)
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % options.report_every == 0 or step == num_steps:
            perplexity = measure_perplexity(model, held_out, options.batch_size)
            print(
                f"step {step}/{num_steps}  loss {loss.item():.3f}  held-out perplexity {perplexity:.1f}  "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )


def save(model: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder that `from_pretrained` reads: weights in float16, their configs and the tokenizer."""
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.cpu().half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--text-dir", type=Path, required=True, help="folder of *.jsonl, *.jsonl.gz or *.txt")
    parser.add_argument("--output-dir", type=Path, required=True, help="where the model and tokenizer are written")
    parser.add_argument("--num-tokens", type=int, default=30_000_000, help="tokens to train on, repeats included")
    parser.add_argument("--num-held-out-texts", type=int, default=500, help="texts kept for the perplexity")
    parser.add_argument("--batch-size", type=int, default=16, help=f"blocks of {CONTEXT} tokens a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="the peak, after the warm-up")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--num-warmup-steps", type=int, default=200, help="at most a tenth of all steps")
    parser.add_argument("--report-every", type=int, default=200, help="steps between measurements of perplexity")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--num-threads", type=int, help="CPU threads; PyTorch's own choice if left out")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    torch.manual_seed(options.seed)
    texts = list(read_texts(options.text_dir))
    if not 0 < options.num_held_out_texts < len(texts):
        raise ValueError(
            f"--num-held-out-texts is {options.num_held_out_texts}; {options.text_dir} has {len(texts)} "
            "texts, of which some must be held out and some left to train on"
        )
    random.Random(options.seed).shuffle(texts)
    held_out_texts, train_texts = texts[: options.num_held_out_texts], texts[options.num_held_out_texts :]
    tokenizer = train_tokenizer(train_texts)
    blocks, held_out = pack(tokenizer, train_texts), pack(tokenizer, held_out_texts)
    model = make_model(tokenizer).to(options.device)
    print(f"{len(train_texts)} texts, {blocks.numel():,} tokens to train on, {held_out.numel():,} held out")
    print(f"{model.num_parameters():,} parameters, vocabulary of {len(tokenizer):,}")
    pretrain(model, blocks, held_out, options)
    save(model, tokenizer, options.output_dir)


if __name__ == "__main__":
    main()
