"""Metrics of an evaluation beside its loss: by name, or a function from Python, of labels or of what the model writes.

BLEU and chrF are sacrebleu's (Post, 2018, arXiv 1804.08771), of the whole set and from 0 to 100; ROUGE is rouge-score's
(Lin, 2004), the mean F1 of the examples, without a stemmer. Exact match and F1 of texts are SQuAD's (`scores`). The
function has the signature of transformers' `compute_metrics`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np

from zotune.errors import InputError, first_line
from zotune.run.scores import exact_match, mean_best, token_f1
from zotune.values import is_number, number_of, shown
from zotune.zo.objectives import candidate_logits, macro_f1
from zotune.zo.protocol import AT_THETA, Engine, Example, Sampling, Theta, TokenIds

OF_LABELS = ("accuracy", "f1")
PACKAGES = {"rouge": "rouge_score", "bleu": "sacrebleu", "chrf": "sacrebleu"}
OF_TEXTS = ("exact_match", "f1", *PACKAGES)
METRICS = tuple(dict.fromkeys((*OF_LABELS, *OF_TEXTS)))
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
BATCH = 256  # examples

ComputeMetrics = Callable[[Any], Mapping[str, Any]]
"""From transformers' `EvalPrediction` to numbers by their names. For a classification, `predictions` are the mean
log-probabilities of the candidates per token, float32 [example, candidate], and `label_ids` the labels; else both are
lists of texts: what the model wrote, and what the data have."""


@dataclass(frozen=True)
class OwnMetrics:
    """What an evaluation measures beside the loss.

    Args:
        names: keys of METRICS.
        compute: a function, as transformers has them.
        of_labels: whether candidates are compared; else the model writes, up to `sampling.max_new_tokens`.
        answers_field: the column with all right answers; None: the completion of the record is the one.
    """

    names: tuple[str, ...] = ()
    compute: ComputeMetrics | None = None
    of_labels: bool = True
    answers_field: str | None = None
    sampling: Sampling = field(default_factory=lambda: Sampling(64))
    stop_strings: tuple[str, ...] = ()
    tokenizer: Any = None

    @property
    def num_new_tokens(self) -> int:
        """How many tokens the model may write behind a prompt."""
        return 0 if self.of_labels else self.sampling.max_new_tokens

    def prepared(self, tokenizer: Any, stop_token_ids: TokenIds) -> "OwnMetrics":
        """These metrics for a model."""
        sampling = dataclasses.replace(self.sampling, stop_token_ids=stop_token_ids)
        return dataclasses.replace(self, tokenizer=tokenizer, sampling=sampling)

    def __call__(
        self, engine: Engine, theta: Theta, examples: Sequence[Example]
    ) -> tuple[dict[str, float], tuple[str, ...] | None]:
        """The metrics at theta, and the texts that the model wrote where it did."""
        if not (self.names or self.compute):
            return {}, None
        if self.of_labels:
            return self._of_labels(engine, theta, examples), None
        texts = self._written(engine, theta, examples)
        golds = [self._golds(example) for example in examples]
        found: dict[str, float] = {}
        for name in self.names:
            found |= of_texts(name, texts, golds)
        return found | self._computed(texts, [right[0] for right in golds]), tuple(texts)

    def _of_labels(self, engine: Engine, theta: Theta, examples: Sequence[Example]) -> dict[str, float]:
        rows: list[np.ndarray] = []
        for start in range(0, len(examples), BATCH):
            rows.extend(candidate_logits(engine.score(theta, [AT_THETA], examples[start : start + BATCH]))[0])
        widest = max(map(len, rows))
        logits = np.full((len(rows), widest), -np.inf, dtype=np.float32)
        for index, row in enumerate(rows):
            logits[index, : len(row)] = row
        answers = logits.argmax(axis=-1).tolist()
        right = [example.is_right(answer) for example, answer in zip(examples, answers, strict=True)]
        labels = [example.label or 0 for example in examples]
        known = {"accuracy": float(np.mean(right)), "f1": macro_f1(labels, answers)}
        return {name: known[name] for name in self.names} | self._computed(logits, np.array(labels))

    def _written(self, engine: Engine, theta: Theta, examples: Sequence[Example]) -> list[str]:
        (found,) = engine.generate(theta, [AT_THETA], examples, self.sampling)
        texts = [str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)) for tokens in found]
        for stop in self.stop_strings:
            texts = [text.partition(stop)[0] for text in texts]
        return [text.strip() for text in texts]

    def _golds(self, example: Example) -> list[str]:
        if self.answers_field is not None:
            return list(example.columns[self.answers_field])
        return [str(self.tokenizer.decode(list(example.candidates[0]), skip_special_tokens=True)).strip()]

    def _computed(self, predictions: Any, label_ids: Any) -> dict[str, float]:
        if self.compute is None:
            return {}
        from transformers import EvalPrediction

        try:
            found = self.compute(EvalPrediction(predictions=predictions, label_ids=label_ids))
        except Exception as error:  # whatever the user's function raises
            raise InputError(f"compute_metrics raised {type(error).__name__}: {first_line(error)}") from error
        if not isinstance(found, Mapping) or not all(map(is_number, found.values())):
            raise InputError(f"compute_metrics: expected numbers by their names, got {shown(found)}")
        return {str(name): number_of(value) for name, value in found.items()}


def check_metrics(names: Sequence[str], of_labels: bool, task: str) -> None:
    """Refuse metrics that the task has not, or whose package is not there.

    Raises:
        InputError: names --metrics.
    """
    allowed = OF_LABELS if of_labels else OF_TEXTS
    for name in names:
        if name not in allowed:
            known = "" if name in METRICS else "there is no such metric; "
            raise InputError(f"--metrics {name}: {known}task {task} has {', '.join(allowed)}")
        if (package := PACKAGES.get(name)) is not None and find_spec(package) is None:
            raise InputError(f'--metrics {name} needs pip install "zotune[metrics]"')


def of_texts(name: str, texts: Sequence[str], golds: Sequence[Sequence[str]]) -> dict[str, float]:
    """One metric of texts, each with its right answers; ROUGE has four numbers. Shares are from 0 to 1."""
    if name in ("exact_match", "f1"):
        return {name: mean_best(exact_match if name == "exact_match" else token_f1, texts, golds)}
    if name == "rouge":
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(list(ROUGE))
        rows = [scorer.score_multi(list(right), text) for text, right in zip(texts, golds, strict=True)]
        return {key: float(np.mean([row[key].fmeasure for row in rows])) for key in ROUGE}
    import sacrebleu

    most = max(map(len, golds))
    streams: Any = [[right[place] if place < len(right) else None for right in golds] for place in range(most)]
    measure = sacrebleu.corpus_bleu if name == "bleu" else sacrebleu.corpus_chrf
    score = float(measure(list(texts), streams).score)
    return {name: score if math.isfinite(score) else 0.0}
