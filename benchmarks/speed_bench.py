"""What all figures of speed.py share: prompts of real text, both sides made from the flags, and timing in turn."""

import argparse
import gzip
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from baseline_mezo import BaselineMezo
from opt_models import make_model
from transformers import AutoTokenizer

from zotune.adapter.forms import initial_theta
from zotune.adapter.spec import LoraSpec
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.zo.estimators import Spsa
from zotune.zo.noise import GAUSSIAN
from zotune.zo.noise_ahead import AHEAD
from zotune.zo.objectives import cross_entropy
from zotune.zo.optimizers import Sgd
from zotune.zo.protocol import Example, TokenIds
from zotune.zo.updates import Slopes

LABELS: tuple[TokenIds, ...] = ((7818,), (1049,))
Work = Callable[[], object]


class Bench:
    """Prompts of real text, and both sides made from the flags."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
        self.invocation = tuple(range(1000, 1000 + options.suffix_tokens))
        self.results: list[dict[str, Any]] = []

    def examples(self, count: int, max_tokens: int | None = None, before: TokenIds = ()) -> list[Example]:
        """Examples with two labels of one token; `before` stands in front of every prompt."""
        cut = max_tokens or self.options.prompt_tokens
        with gzip.open(self.options.data, "rt", encoding="utf-8") as lines:
            texts = [json.loads(line)["text"] for line, _ in zip(lines, range(count), strict=False)]
        prompts = [tuple(self.tokenizer(text, verbose=False).input_ids[:cut]) for text in texts]
        return [Example(before + p, self.invocation, LABELS, i % 2) for i, p in enumerate(prompts)]

    def engine(self, scope: str, budget_bytes: float = 64e9) -> TorchEngine:
        spec = LoraSpec(8, 16.0, ("q_proj", "v_proj"), self.invocation if scope == "activated" else None)
        return TorchEngine(make_model(self.options.shape), spec, PrefixCache(budget_bytes))

    def baseline(self) -> BaselineMezo:
        return BaselineMezo(make_model(self.options.shape), 8, 16, ("q_proj", "v_proj"))

    def compare(self, figure: str, ours: Work, other: Work, repeats: int = 1, warm: bool = True) -> None:
        """Time `other` once and `ours` `repeats` times in each round; the ratio is other's time over ours."""
        if warm:
            ours()
        times: dict[str, list[float]] = {"ours": [], "other": []}
        for _ in range(self.options.rounds):
            for side, work, count in (("other", other, 1), ("ours", ours, repeats)):
                start = time.perf_counter()
                for _ in range(count):
                    work()
                times[side].append((time.perf_counter() - start) / count)
        ratios = [b / a for a, b in zip(times["ours"], times["other"], strict=True)]
        medians = {side: statistics.median(values) for side, values in times.items()}
        self.record(figure, medians["other"] / medians["ours"], min(ratios), max(ratios), **medians)

    def record(self, figure: str, ratio: float, low: float, high: float, **more: float) -> None:
        self.results.append({"figure": figure, "ratio": ratio, "ratio_min": low, "ratio_max": high, **more})
        print(json.dumps(self.results[-1]), flush=True)


class Step:
    """A training step of zotune on one engine."""

    def __init__(self, engine: TorchEngine, directions: int) -> None:
        self.engine = engine
        self.directions = directions
        self.theta: Any = initial_theta(engine.tensor_shapes, 0)
        self.count = 0

    def __call__(self, batch: Sequence[Example]) -> None:
        estimator = Spsa(1e-2)
        self.count += 1
        probes = estimator.ask(self._seeds(self.count))
        AHEAD.start(GAUSSIAN, self._seeds(self.count + 1), self.theta)
        losses = cross_entropy.losses(self.engine.score(self.theta, probes, batch), batch)
        self.theta, _ = Sgd().update(self.theta, {}, Slopes(tuple(estimator.tell(probes, losses))), 1e-4)

    def _seeds(self, step: int) -> list[int]:
        return [step * 1000 + k for k in range(self.directions)]
