"""Linear probing: a logistic regression on what the model's last layer says of each prompt; the model stays as it is.

One of the baselines of MeZO (Malladi et al., 2023). The features are the hidden states that the LM head reads at the
last token of prompt and invocation, or at the mask, where the label word would be predicted. As in MeZO's released
code, scikit-learn's LogisticRegressionCV chooses the penalty by cross-validation, without an intercept.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from zotune.assemble.data import load_data
from zotune.assemble.encoding import make_encoder
from zotune.assemble.model import check_installed, facts_of, find_model
from zotune.assemble.parts import encode_texts
from zotune.config.run import choose_max_length, default_dtype
from zotune.config.settings import Config
from zotune.engine.torch.loading import load_model
from zotune.errors import InputError
from zotune.zo.objectives import macro_f1
from zotune.zo.protocol import Example

FOLDS = 5
MOST_ITERATIONS = 5000


@dataclass(frozen=True)
class LinearProbe:
    """Scores over `num_examples`, of a regression on `num_train` examples; `predictions` are label ids."""

    accuracy: float
    macro_f1: float
    num_train: int
    num_examples: int
    predictions: tuple[int, ...]


def linear_probe(config: Config) -> LinearProbe:
    """Fit on the training data of `config`, and score on its evaluation data.

    Raises:
        InputError: the task has no fixed labels, a label is too rare to cross-validate, or scikit-learn is missing.
    """
    try:
        from sklearn.linear_model import LogisticRegressionCV
    except ImportError as error:
        raise InputError('linear-probe needs scikit-learn: pip install "zotune[probe]"') from error
    check_installed(config)
    data = load_data(config)
    if not data.task.labels:
        raise InputError(f"--task: {data.task.name} has no fixed labels, which linear probing is for")
    counts = Counter(text.label for text in data.train)
    rarest = min(counts.values())
    if len(counts) < 2 or rarest < 2:
        raise InputError(
            "--train-data: linear probing needs two labels with two examples or more, and no label with one; got "
            f"{', '.join(f'{count} of {data.task.label_words[label or 0]}' for label, count in sorted(counts.items()))}"
        )
    found = find_model(config)
    facts = facts_of(found, config)
    max_length = choose_max_length(config.max_length, found.context)
    encoder = make_encoder(found, data.task, config, max_length, demonstrations=data.demonstrations)
    train = encode_texts(encoder, data.train, "training")
    evaluation = encode_texts(encoder, data.evaluation, "evaluation")
    if facts.num_threads is not None:
        torch.set_num_threads(facts.num_threads)
    model = load_model(
        found.path, config.dtype or default_dtype(facts)[0], facts.device, config.trust_remote_code, None
    )
    model.eval()
    regression = LogisticRegressionCV(
        cv=min(FOLDS, rarest), l1_ratios=(0,), fit_intercept=False, max_iter=MOST_ITERATIONS, scoring="accuracy",
        use_legacy_attributes=False,
    )  # fmt: skip
    regression.fit(features(model, train), [example.label for example in train])
    predictions = regression.predict(features(model, evaluation)).tolist()
    labels = [example.label for example in evaluation]
    accuracy = float(np.mean([label == guess for label, guess in zip(labels, predictions, strict=True)]))
    return LinearProbe(accuracy, macro_f1(labels, predictions), len(train), len(labels), tuple(predictions))


def features(model: PreTrainedModel, examples: Sequence[Example]) -> np.ndarray:
    """What the LM head reads at the last token of each prompt, or at its mask, float32 [example, width]; each row
    alone, unpadded."""
    states = []
    with torch.inference_mode():
        for example in examples:
            row = torch.tensor([example.prompt + example.invocation], device=model.device)
            place = -1 if example.mask_at is None else example.mask_at
            states.append(model.base_model(input_ids=row).last_hidden_state[0, place].float().cpu().numpy())
    return np.stack(states)
