"""Models of OPT's shapes with random weights, for benchmarks: speed does not depend on what the weights are."""

import torch
from transformers import AutoModelForCausalLM, OPTConfig, PreTrainedModel

SHAPES = {"tiny": (128, 2, 4), "opt-125m": (768, 12, 12), "opt-1.3b": (2048, 24, 32)}  # width, layers, heads
VOCABULARY = 50272


def make_model(shape: str) -> PreTrainedModel:
    """An OPT of that shape with random weights, in fp32."""
    torch.manual_seed(0)
    width, layers, heads = SHAPES[shape]
    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=width, word_embed_proj_dim=width, ffn_dim=4 * width,
        num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=2048,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()
