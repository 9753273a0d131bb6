"""What the trial at the start costs: seconds of one core to open the torch engine on a model of 135M random parameters.

python benchmarks/trial.py
"""

import resource
import warnings

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from zotune.adapter.spec import LoraSpec
from zotune.engine.torch.fast import TorchEngine


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)  # type: ignore[arg-type]
        for scope, invocation in (("activated", (1, 2)), ("everywhere", None)):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
            TorchEngine(model, LoraSpec(8, 16.0, ("q_proj", "v_proj"), invocation)).close()
            spent = resource.getrusage(resource.RUSAGE_SELF).ru_utime - before
            print(f"{str(dtype).removeprefix('torch.')}, {scope}: {spent:.1f} s")


if __name__ == "__main__":
    main()
