"""Tiny models of every causal architecture that the installed transformers can build, with every kind of layer it has.

Windows and chunks are short, so that a batch has sequences on both sides of them. Weights are random and large enough
for outputs to differ from token to token.
"""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 320
WINDOW = 40  # tokens
MOST_PARAMETERS = 8_000_000  # of a model that is still called tiny

SIZES: dict[str, Any] = {  # by the names that configurations have for them
    "vocab_size": VOCABULARY, "unpadded_vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 1,
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "embed_dim": 32, "word_embed_proj_dim": 32,
    "embedding_size": 32, "decoder_hidden_size": 32, "attention_hidden_size": 32, "lru_width": 32,
    "n_layer": 2, "n_layers": 2, "num_layers": 2, "num_hidden_layers": 2, "decoder_layers": 2, "encoder_layers": 1,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "decoder_attention_heads": 4,
    "encoder_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "ffn_dim": 48, "d_ff": 48, "n_inner": 48, "decoder_ffn_dim": 48, "encoder_ffn_dim": 48,
    "ffn_hidden_size": 48, "d_inner": 48, "dim_ff": 48, "decoder_d_model": 32,
    "max_position_embeddings": 256, "n_positions": 256, "max_seq_len": 256, "n_ctx": 256, "model_max_length": 256,
    "context_length": 256, "head_dim": 8, "rotary_dim": 4, "d_head": 8, "kv_channels": 8,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_topk": 2,
    "num_experts_per_token": 2, "moe_num_experts": 4, "moe_k": 2, "n_shared_experts": 1, "num_shared_experts": 1,
    "moe_num_shared_experts": 1, "zero_expert_num": 2, "n_group": 1, "topk_group": 1, "num_expert_group": 1,
    "first_k_dense_replace": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16, "expert_ffn_hidden_size": 16, "moe_shared_expert_intermediate_size": 16,
    "shared_experts_intermediate_size": 16, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY,
    "sliding_window": WINDOW, "sliding_window_size": WINDOW, "attention_chunk_size": WINDOW, "window_size": WINDOW,
    "local_attention": WINDOW, "attention_window_size": WINDOW, "keep_window_size": WINDOW, "index_topk": WINDOW,
    "index_n_heads": 2, "index_head_dim": 8, "chunk_size": WINDOW, "mamba_chunk_size": WINDOW, "block_size": WINDOW,
    "mamba_n_heads": 4, "mamba_num_heads": 4, "n_mamba_heads": 1, "mamba_d_head": 16, "mamba_head_dim": 16,
    "mamba_d_ssm": 64, "mamba_d_state": 8, "mamba_n_groups": 1, "n_groups": 1, "mamba_ngroups": 1, "state_size": 8,
    "ssm_state_size": 8, "mamba_dt_rank": 4, "time_step_rank": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_head_dim": 8, "linear_num_heads": 4,
}  # fmt: skip
LATENT = {  # attention through a latent of keys and values
    "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {  # what sizes alone do not settle; None: not given
    "bamba": {"layer_types": None, "attn_layer_indices": [1]},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}},
        "layer_types": ["full_attention"] * 2,
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1},
    "dots3_note_text": {"index_head_dim": 16},
    "falcon_h1": {"layer_types": None},
    "gemma3n_text": {
        "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
        "intermediate_size": [48] * 4, "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"head_dim": 16},
    "mpt": {"expansion_ratio": 2},
    "phi3": {
        "original_max_position_embeddings": WINDOW,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4,
            "long_factor": [1.0, 8.0, 20.0, 40.0], "original_max_position_embeddings": WINDOW,
        },
    },
    "nemotron": {"num_key_value_heads": 2},
    "prophetnet": {"num_hidden_layers": None, "num_encoder_layers": 1, "num_decoder_layers": 2,
                   "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": WINDOW,
                       "indexer_compress_ratio": 2, "ngram_vocab_size_base": 50, "split_ngram_parts": 2},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "layer_types": None},
    "reformer": {"is_decoder": True, "axial_pos_shape": [16, 16], "axial_pos_embds_dim": [16, 16],
                 "attention_head_size": 8, "feed_forward_size": 48, "attn_layers": ["local", "lsh"],
                 "local_attn_chunk_length": 16, "lsh_attn_chunk_length": 16, "num_buckets": 4},
    "roc_bert": {
        "pronunciation_vocab_size": 8, "shape_vocab_size": 8, "pronunciation_embed_dim": 8, "shape_embed_dim": 8,
    },
    "xlnet": {"max_position_embeddings": None},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4, "layer_types": None, "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64, "attention_head_dim": 16,
    },
    "zamba2": {
        "num_hidden_layers": 4, "layer_types": None, "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "mamba_headdim": 16, "n_mamba_heads": 4, "attention_head_dim": 16, "num_key_value_heads": 4,
        "attention_hidden_size": 64,
    },
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


def tiny_config(kind: str) -> PretrainedConfig:
    """The configuration of a tiny model.

    Raises:
        Exception: whatever the architecture's own code raises over sizes that it does not take.
    """
    whole = AutoConfig.for_model(kind)
    text = whole.get_text_config()
    sizes = {name: value for name, value in SIZES.items() if _takes(text, name)}
    if _takes(text, "kv_lora_rank"):
        sizes |= {name: value for name, value in LATENT.items() if _takes(text, name)}
        if getattr(text, "head_dim", None) == getattr(text, "qk_rope_head_dim", 0):
            sizes["head_dim"] = LATENT["qk_rope_head_dim"]
    if getattr(text, "is_decoder", None) is False:
        sizes["is_decoder"] = True
    sizes |= dict(_layers(text)) | OWN.get(text.model_type, {})
    sizes = {name: value for name, value in sizes.items() if value is not None}
    if text is whole:
        return AutoConfig.for_model(kind, **sizes)
    (name,) = (name for name, value in vars(whole).items() if value is text)
    parts: dict[str, Any] = {name: type(text)(**sizes).to_dict()}
    return type(whole)(**parts)


def _takes(config: PretrainedConfig, name: str) -> bool:
    """Whether a configuration of this kind is made with a value of that name."""
    own = getattr(type(config), name, None)
    if isinstance(own, property) and own.fset is None:
        return False
    try:
        return getattr(config, name) is not None or name in ("head_dim", "q_lora_rank", "v_head_dim")
    except AttributeError:
        return False
    except Exception:  # a value that differs between layers
        return True


def _layers(text: PretrainedConfig) -> Iterator[tuple[str, Any]]:
    """One layer of each kind, where layers differ."""
    lists = {}
    for name in ("layer_types", "mlp_layer_types", "indexer_types"):
        value = getattr(text, name, None) if _takes(text, name) else None
        if isinstance(value, list) and all(isinstance(kind, str) for kind in value):
            lists[name] = value
    if not lists:
        return
    columns = list(zip(*lists.values(), strict=False))
    kept = [index for index, column in enumerate(columns) if column not in columns[:index]] or [0]
    kept = kept if len(kept) > 1 else [0, min(1, len(columns) - 1)]
    yield "num_hidden_layers", len(kept)
    for name, value in lists.items():
        yield name, [value[index] for index in kept]


def tiny_model(kind: str) -> PreTrainedModel:
    """A model of that kind, in evaluation mode.

    Raises:
        Exception: it cannot be made with few parameters; whatever its own code raises over a pass of some tokens.
    """
    config = tiny_config(kind)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if count > MOST_PARAMETERS:
        raise ValueError(f"{count:,} parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.eval()
    with torch.no_grad():
        assert model(input_ids=torch.arange(2, 62)[None], use_cache=False).logits.isfinite().all()
    model.generation_config = GenerationConfig(pad_token_id=0)  # no tokens that a model forces
    return model


KINDS = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
