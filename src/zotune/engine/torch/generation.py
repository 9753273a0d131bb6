"""Texts from a model of transformers, by its own `generate`: greedily, or drawn with the noise of `token_choice.py`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from zotune.engine.torch.layers import TrainedLayers
from zotune.engine.torch.token_choice import TokenChoice
from zotune.zo.protocol import EngineStats, Sampling, TokenIds


def generate_texts(
    model: PreTrainedModel,
    inputs: dict[str, torch.Tensor],
    sampling: Sampling,
    seeds: Sequence[int],
    layers: TrainedLayers,
    stats: EngineStats,
    whole: bool = False,
) -> list[TokenIds]:
    """What rows of model inputs go on with, each up to its stop token, which is left out; counts what ran.

    Args:
        seeds: of each row.
        layers: what is trained; its `token_mask` is for the tokens of the inputs, and grows with them.
        whole: compute all tokens of a row for each new one, without cache, mask or positions.

    Raises:
        FloatingPointError: logits that are no numbers.
    """
    token_ids = inputs["input_ids"]
    num_given = int(inputs["attention_mask"].sum()) if "attention_mask" in inputs else token_ids.numel()
    if (virtual := token_ids < 0).any():  # transformers looks at ids too, as for a repetition penalty
        if not whole:
            inputs["inputs_embeds"] = model.get_input_embeddings()(token_ids)
        inputs["input_ids"] = torch.where(virtual, token_ids[:, -1:].clamp(min=0), token_ids)
    stop = list(sampling.stop_token_ids)
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,  # the largest of the scores below is a sample
        eos_token_id=stop or model.config.get_text_config().vocab_size,  # no token: else the model's own would stop
        pad_token_id=stop[0] if stop else 0,
        use_cache=not whole,  # also where a model was saved without: what is computed is one token at a time
    )
    choice, rows, num_first = TokenChoice(sampling, seeds), np.arange(len(seeds)), token_ids.shape[1]

    def scores(so_far: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        if layers.token_mask is not None:  # what follows a prompt is adapted, also where nothing of the prompt is
            layers.token_mask = torch.nn.functional.pad(layers.token_mask, (0, 1), value=True)
        return choice.scores(logits, rows, so_far.shape[1] - num_first)

    generate: Any = model.generate
    with _whole_rows(model, token_ids) if whole else nullcontext():
        sequences = generate(**inputs, generation_config=config, logits_processor=[scores])
    new_tokens = sequences[:, inputs["input_ids"].shape[1] :].tolist()
    stats.forward_passes += len(new_tokens[0])
    completions = [_until(token_ids, stop) for token_ids in new_tokens]
    num_new = len(new_tokens[0]) if whole else 0
    num_new_computed = num_new * (num_new - 1) // 2 + (num_new - 1) * num_given if whole else sum(map(len, completions))
    stats.tokens_computed += num_given + num_new_computed
    return completions


@contextmanager
def _whole_rows(model: PreTrainedModel, token_ids: torch.Tensor) -> Iterator[None]:
    """The model is given all tokens of its rows for each new one, and nothing else."""

    def prepare(input_ids: torch.Tensor, **kwargs: Any) -> dict[str, Any]:
        rows = torch.cat((token_ids, input_ids[:, token_ids.shape[1] :]), dim=1)
        return {"input_ids": rows, "use_cache": False}

    vars(model)["prepare_inputs_for_generation"] = prepare
    try:
        yield
    finally:
        del vars(model)["prepare_inputs_for_generation"]


def _until(token_ids: list[int], stop: list[int]) -> TokenIds:
    ends = [index for index, token in enumerate(token_ids) if token in stop]
    return tuple(token_ids[: ends[0]] if ends else token_ids)
