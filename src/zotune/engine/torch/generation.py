"""Texts from a model of transformers, by its own `generate`: greedily, or drawn from a seed."""

from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from zotune.zo.protocol import EngineStats, Sampling, TokenIds


def generate_texts(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], sampling: Sampling, stats: EngineStats
) -> list[TokenIds]:
    """What rows of model inputs go on with, each up to its stop token, which is left out; counts what ran.

    Raises:
        FloatingPointError: logits that are no numbers.
    """
    num_given = int(inputs["attention_mask"].sum())
    token_ids = inputs["input_ids"]
    if (virtual := token_ids < 0).any():  # transformers looks at ids too, as for a repetition penalty
        inputs["inputs_embeds"] = model.get_input_embeddings()(token_ids)
        inputs["input_ids"] = torch.where(virtual, token_ids[:, -1:].clamp(min=0), token_ids)
    stop = list(sampling.stop_token_ids)
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=sampling.temperature > 0.0,
        temperature=sampling.temperature or None,
        top_k=0 if sampling.temperature > 0.0 else None,
        eos_token_id=stop or None,
        pad_token_id=stop[0] if stop else 0,
        use_cache=True,  # also where a model was saved without: what is computed is one token at a time
    )
    generate: Any = model.generate
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(sampling.seed)
        sequences = generate(**inputs, generation_config=config, logits_processor=[_refuse_no_numbers])
    new_tokens = sequences[:, inputs["input_ids"].shape[1] :].tolist()
    stats.forward_passes += len(new_tokens[0])
    completions = [_until(token_ids, stop) for token_ids in new_tokens]
    stats.tokens_computed += num_given + sum(len(token_ids) for token_ids in completions)
    return completions


def _refuse_no_numbers(token_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """A token that may not come has minus infinity; what is no number would give token 0, whatever the text."""
    if not bool(torch.isfinite(logits.amax(dim=-1)).all()):  # NaN wins where there is one
        raise FloatingPointError("the model's logits are no numbers")
    return logits


def _until(token_ids: list[int], stop: list[int]) -> TokenIds:
    ends = [index for index, token in enumerate(token_ids) if token in stop]
    return tuple(token_ids[: ends[0]] if ends else token_ids)
