"""The pace of a masked model: zotune's step over that of MeZO's own code for RoBERTa, a table of docs/masked_models.md.

    python benchmarks/masked.py --write docs/masked_models.md

The other side takes a step as the paper's medium_models folder does (Malladi et al., 2023): the batch padded to its
longest text, the encoder over all of it, the whole head on the masks' states, two passes, and noise that is drawn again
from its seed for every move of the parameters. Attention is transformers' present one (sdpa) on both sides. Both train
the same LoRA on query and value of a roberta-base with random weights, on the same texts, in turn in one process. Their
step has one direction, so a step of ours that has more is compared by the direction.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from smollm2 import processor
from transformers import PreTrainedModel, RobertaConfig, RobertaForMaskedLM

sys.path.insert(0, str(Path(__file__).parents[1] / "runs"))
from page import put

from zotune.adapter.forms import initial_theta
from zotune.adapter.spec import LoraSpec
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.loading import DTYPES
from zotune.zo.estimators import OneSided, Spsa
from zotune.zo.noise import GAUSSIAN
from zotune.zo.noise_ahead import AHEAD
from zotune.zo.objectives import cross_entropy
from zotune.zo.optimizers import Adam, Sgd
from zotune.zo.protocol import AT_THETA, Example
from zotune.zo.updates import Slopes

EPSILON, LEARNING_RATE = 1e-3, 1e-5
RANK, ALPHA, TARGETS = 8, 16, ("query", "value")
WORDS = (6587, 372)  # two label words
PAD, MASK, VOCABULARY = 1, 50264, 50265
SHORTEST = 0.25  # of the longest text, in the mixed batch
CLOSE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}  # losses of both sides, whose sums are in another order
ESTIMATORS = {"two-sided": Spsa, "one-sided": OneSided}


def make_model(dtype: str) -> PreTrainedModel:
    """A roberta-base with the same random weights each time."""
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=VOCABULARY, max_position_embeddings=514, type_vocab_size=1, pad_token_id=PAD)
    return RobertaForMaskedLM._from_config(config, attn_implementation="sdpa").to(DTYPES[dtype]).eval()


def make_batch(batch_size: int, tokens: int, mixed: bool) -> list[Example]:
    """Random texts with a mask, all of so many tokens, or of lengths spread evenly up to it."""
    random = np.random.default_rng(0)
    lengths = np.linspace(SHORTEST * tokens if mixed else tokens, tokens, batch_size).astype(int)
    batch = []
    for index, length in enumerate(random.permutation(lengths)):
        text = random.integers(3, MASK, length)
        text[length - 3] = MASK
        batch.append(Example(tuple(text.tolist()), (), tuple((w,) for w in WORDS), index % 2, int(length - 3)))
    return batch


class Ours:
    """Steps through the estimator, the engine and the optimizer."""

    def __init__(self, dtype: str) -> None:
        self.engine = TorchEngine(make_model(dtype), LoraSpec(RANK, float(ALPHA), TARGETS))
        assert self.engine.plain_reason is None
        self.theta: Any = initial_theta(self.engine.tensor_shapes, 0)
        self.states: dict[Any, Any] = {}
        self.count = 0

    def step(self, batch: Sequence[Example], estimator: str, directions: int) -> None:
        optimizer = Sgd() if directions == 1 else Adam()
        kind = ESTIMATORS[estimator](EPSILON)
        state = self.states.get(type(optimizer)) or optimizer.init(self.theta)
        self.count += 1
        now, after = ([count * 1000 + k for k in range(directions)] for count in (self.count, self.count + 1))
        probes = kind.ask(now)
        AHEAD.start(GAUSSIAN, after, self.theta)
        losses = cross_entropy(self.engine, self.theta, probes, batch).values
        slopes = Slopes(tuple(kind.tell(probes, losses)))
        self.theta, self.states[type(optimizer)] = optimizer.update(self.theta, state, slopes, LEARNING_RATE)

    def losses(self, batch: Sequence[Example]) -> np.ndarray:
        """At theta, of each example."""
        return cross_entropy(self.engine, self.theta, [AT_THETA], batch).values[0]


class MediumModels:
    """MeZO with one direction and SGD, as the paper's code for masked models has it."""

    def __init__(self, dtype: str) -> None:
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS))
        model: Any = get_peft_model(make_model(dtype), config, autocast_adapter_dtype=False)
        self.model = model.eval().base_model.model
        self.parameters = [p for name, p in model.named_parameters() if "lora_" in name]

    @torch.no_grad()
    def step(self, batch: Sequence[Example], seed: int) -> None:
        self._move(seed, EPSILON)
        above = self.losses(batch).mean()
        self._move(seed, -2 * EPSILON)
        below = self.losses(batch).mean()
        self._move(seed, EPSILON)
        self._move(seed, -LEARNING_RATE * float(above - below) / (2 * EPSILON))

    @torch.no_grad()
    def losses(self, batch: Sequence[Example]) -> torch.Tensor:
        longest = max(len(example.prompt) for example in batch)
        input_ids = torch.tensor([[*e.prompt, *[PAD] * (longest - len(e.prompt))] for e in batch])
        places = torch.tensor([example.mask_at for example in batch])
        states = self.model.roberta(input_ids, attention_mask=(input_ids != PAD).long())[0]
        logits = self.model.lm_head(states[torch.arange(len(batch)), places])[:, list(WORDS)]
        labels = torch.tensor([example.label for example in batch])
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    def _move(self, seed: int, scale: float) -> None:
        torch.manual_seed(seed)
        for parameter in self.parameters:
            noise = torch.normal(mean=0, std=1, size=parameter.size(), dtype=parameter.dtype)
            parameter.data = parameter.data + scale * noise


def compare(ours: Ours, other: MediumModels, batch: list[Example], kind: str, count: int, rounds: int) -> str:
    """Seconds a direction of both, in turn, and the ratio other / ours of neighbouring turns, as cells of a table."""
    times: dict[str, list[float]] = {"ours": [], "other": []}
    other.step(batch[:2], 0)
    ours.step(batch[:2], kind, count)
    for turn in range(rounds):
        began = time.perf_counter()
        other.step(batch, turn)
        between = time.perf_counter()
        ours.step(batch, kind, count)
        times["other"].append(between - began)
        times["ours"].append((time.perf_counter() - between) / count)
    here, there = times["ours"], times["other"]
    ratios = [b / a for a, b in zip(here, there, strict=True)]
    spread = f"{statistics.median(ratios):.2f} | {min(ratios):.2f} - {max(ratios):.2f}"
    return f"{spread} | {statistics.median(here):.3f} s | {statistics.median(there):.3f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128, help="of the longest text")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--texts", nargs="+", choices=("even", "mixed"), default=["even", "mixed"])
    parser.add_argument("--directions", nargs="+", type=int, default=[1, 16], help="of a step of ours; theirs has one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, help="a page to put the table into, such as docs/masked_models.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [
        "| dtype | texts | directions of our step | theirs over ours, a direction | range | ours | theirs |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(rows), flush=True)
    for dtype in options.dtype:
        ours, other = Ours(dtype), MediumModels(dtype)
        for texts in options.texts:
            batch = make_batch(options.batch_size, options.tokens, texts == "mixed")
            few = batch[:4]
            np.testing.assert_allclose(ours.losses(few), other.losses(few).float(), atol=CLOSE[dtype])
            for count in options.directions:
                for kind in ESTIMATORS if count > 1 else ["two-sided"]:
                    figures = compare(ours, other, batch, kind, count, options.rounds)
                    rows.append(f"| {dtype} | {texts} | {count}, {kind} | {figures} |")
                    print(rows[-1], flush=True)
        ours.engine.close()
    table = "\n".join(rows) + (
        f"\n\n{processor()}, {options.threads} thread, torch {torch.__version__}, {date.today()}; batches of "
        f"{options.batch_size} texts of {options.tokens} tokens, or mixed ones of {SHORTEST * options.tokens:.0f} to "
        f"{options.tokens}, {options.rounds} rounds. Seconds are those of a direction: a step of ours by its number "
        "of directions, and one step of theirs, which has two passes."
    )
    print(table)
    if options.write:
        put(options.write, "masked-pace", table)


if __name__ == "__main__":
    main()
