"""The objective whose loss is minus a reward: every probe writes, and what it wrote is judged.

Nothing here needs a derivative, of the reward or of the choice of a token. All probes of a prompt are given the same
noise to choose their tokens by (common random numbers), so that they differ by what they are and not by luck.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import numpy as np

from zotune.errors import RewardError
from zotune.values import shown
from zotune.zo.draws import derive_seed
from zotune.zo.objectives.base import Losses, Objective, Sample
from zotune.zo.protocol import Engine, Example, Need, Probe, Sampling, Theta, TokenIds


class Rewarded(Protocol):
    """The rewards of n completions: float64 [n], and those of each reward by its name; NaN: left out."""

    @property
    def values(self) -> np.ndarray: ...

    @property
    def by_name(self) -> Mapping[str, np.ndarray]: ...


class Judge(Protocol):
    """Gives rewards to completions; `rewards.weighted.Rewards` is one."""

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]],
        completion_ids: Sequence[Sequence[int]] | None = None,
    ) -> Rewarded: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class RewardObjective(Objective):
    """Minus the mean reward of what a probe writes behind each prompt.

    Args:
        sampling: how texts are written; its seeds are made of those of the probes, so that each step has its own noise.
        num_generations: how many texts each probe writes for a prompt.
        stop_strings: a text ends before the first of these.
        judge, tokenizer: given when a run begins.
    """

    needs: ClassVar[tuple[Need, ...]] = ("generations",)

    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=64))
    num_generations: int = 1
    stop_strings: tuple[str, ...] = ()
    judge: Judge | None = None
    tokenizer: Any = None

    def prepared(self, tokenizer: Any) -> "RewardObjective":
        return replace(self, tokenizer=tokenizer)

    def judged_by(self, judge: Judge | None, stop_token_ids: TokenIds) -> "RewardObjective":
        """This objective with its rewards, and with the tokens that end a text of the model."""
        return replace(self, judge=judge, sampling=replace(self.sampling, stop_token_ids=stop_token_ids))

    def for_evaluation(self) -> "RewardObjective":
        """One text a prompt, of the most likely tokens."""
        return replace(self, sampling=replace(self.sampling, temperature=0.0), num_generations=1)

    def close(self) -> None:
        if self.judge:
            self.judge.close()

    def __call__(self, engine: Engine, theta: Theta, probes: Sequence[Probe], batch: Sequence[Example]) -> Losses:
        """A prompt for which a probe has no reward counts as the mean of the others there; one for which none has a
        reward is left out.

        Raises:
            RewardError: a reward gave no usable answer, or none for any text.
        """
        prompts = [example for example in batch for _ in range(self.num_generations)]
        written = engine.generate(theta, probes, prompts, self._sampling_of(probes, len(prompts)))
        tokens = [text for of_probe in written for text in of_probe]
        texts = [self.text_of(text) for text in tokens]
        found = self._judged(prompts * len(probes), texts, tokens)
        rewards = found.values.reshape(len(probes), len(batch), self.num_generations)
        present = ~np.isnan(rewards)
        kept = present.any(axis=(0, 2))
        if not kept.any():
            raise RewardError(
                f"the rewards have no value for any of {len(texts)} texts; the first is {shown(texts[0])}"
            )
        of_probes = np.where(present, rewards, 0.0).sum(axis=2)[:, kept] / present.sum(axis=2)[:, kept].clip(min=1)
        absent = ~present.any(axis=2)[:, kept]
        means = np.where(absent, 0.0, of_probes).sum(axis=0) / (~absent).sum(axis=0)
        values = np.where(absent, means, of_probes)  # [probe, kept example]
        return Losses(-values, measured=self._measured(values, found, tokens), samples=_samples(prompts, texts, found))

    def text_of(self, tokens: TokenIds) -> str:
        """What a completion says, up to a stop string."""
        text = str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))
        return text[: min((text.find(stop) for stop in self.stop_strings if stop in text), default=None)]

    def _sampling_of(self, probes: Sequence[Probe], count: int) -> Sampling:
        drawn = derive_seed("texts", *sorted({probe.seed for probe in probes}))
        seeds = tuple(derive_seed(drawn, place) for place in range(count))
        return replace(self.sampling, seeds=seeds, ends=self._has_stop_string if self.stop_strings else None)

    def _has_stop_string(self, tokens: Sequence[int]) -> bool:
        longest = max(map(len, self.stop_strings))  # in characters: of tokens it is no more
        text = self.tokenizer.decode(list(tokens[-longest - 4 :]), skip_special_tokens=True)
        return any(stop in text for stop in self.stop_strings)

    def _judged(self, examples: Sequence[Example], texts: Sequence[str], tokens: Sequence[TokenIds]) -> Rewarded:
        """Chat prompts have chat completions, as TRL gives them."""
        assert self.judge is not None
        said: list[Any] = [
            example.said if isinstance(example.said, str) else [dict(each) for each in example.said]
            for example in examples
        ]
        completions = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(said, texts, strict=True)
        ]
        names = dict.fromkeys(name for example in examples for name in example.columns)
        columns = {name: [example.columns.get(name) for example in examples] for name in names}
        return self.judge(said, completions, columns, tokens)

    def _measured(self, values: np.ndarray, found: Rewarded, tokens: Sequence[TokenIds]) -> dict[str, float]:
        """What a look at the probes says beside the loss."""
        of_probes, lengths = values.mean(axis=1), np.array([len(text) for text in tokens])
        left_out = np.isnan(found.values)
        by_name = {f"reward/{name}": float(np.nanmean(each)) for name, each in found.by_name.items() if _has_any(each)}
        return {
            "reward": float(values.mean()),
            "reward_std": float(np.nanstd(found.values)),
            "reward_best": float(of_probes.max()),
            "left_out": float(left_out.mean()),
            "completion_length": float(lengths.mean()),
            "cut_short": float((lengths >= self.sampling.max_new_tokens).mean()),
            **(by_name if len(by_name) > 1 else {}),
        }


def _has_any(values: np.ndarray) -> bool:
    return not bool(np.isnan(values).all())


def _samples(prompts: Sequence[Example], texts: Sequence[str], found: Rewarded) -> tuple[Sample, ...]:
    """What the first probe wrote."""

    def plain(value: float) -> float | None:
        return None if np.isnan(value) else float(value)

    return tuple(
        Sample(
            example.said, texts[place], plain(found.values[place]),
            {name: plain(values[place]) for name, values in found.by_name.items()},
        )
        for place, example in enumerate(prompts)
    )  # fmt: skip
