"""The baseline: a MeZO step as the paper's released code takes it (Malladi et al., 2023), on a LoRA of PEFT's.

A left-padded batch with one row per candidate, transformers' forward with logits at every position, log-softmax over
all of them, two passes, and the trained parameters perturbed in place by noise drawn again from its seed: forward by
eps, back by 2 eps, forward again, then the update. Only this file knows it; no engine of zotune's is used.
"""

from collections.abc import Sequence

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from zotune.zo.protocol import Example, TokenIds


class BaselineMezo:
    """Two-sided SPSA with one direction, SGD, on one model in this process."""

    def __init__(self, model: PreTrainedModel, rank: int, alpha: int, target_modules: Sequence[str]) -> None:
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(target_modules), task_type="CAUSAL_LM")
        self.model = get_peft_model(model, config).eval()
        self.parameters = [p for name, p in self.model.named_parameters() if "lora_" in name]

    @torch.no_grad()
    def step(self, batch: Sequence[Example], seed: int, epsilon: float, learning_rate: float) -> float:
        """One training step; returns the slope."""
        self._perturb(seed, epsilon)
        above = self._loss(batch)
        self._perturb(seed, -2 * epsilon)
        below = self._loss(batch)
        self._perturb(seed, epsilon)
        slope = (above - below) / (2 * epsilon)
        self._perturb(seed, -learning_rate * slope)
        return slope

    @torch.no_grad()
    def predict(self, example: Example) -> int:
        """The candidate with the highest mean log-probability; as its evaluation does, one candidate at a time."""
        return int(np.argmax([self._scores([(example, candidate)])[0] for candidate in example.candidates]))

    def _perturb(self, seed: int, scale: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters:
            parameter.data += scale * torch.randn(parameter.shape, generator=generator)

    def _loss(self, batch: Sequence[Example]) -> float:
        scores = self._scores([(example, candidate) for example in batch for candidate in example.candidates])
        labels = torch.tensor([example.label for example in batch])
        return float(torch.nn.functional.cross_entropy(torch.tensor(scores).view(len(batch), -1), labels))

    def _scores(self, rows: Sequence[tuple[Example, TokenIds]]) -> list[float]:
        texts = [example.prompt + example.invocation + candidate for example, candidate in rows]
        longest = max(map(len, texts))
        input_ids = torch.tensor([[0] * (longest - len(text)) + list(text) for text in texts])
        attention_mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        log_probs = logits[:, :-1].log_softmax(dim=-1)
        picked = log_probs.gather(2, input_ids[:, 1:, None])[..., 0]
        return [float(row[-len(candidate) :].mean()) for row, (_, candidate) in zip(picked, rows, strict=True)]
