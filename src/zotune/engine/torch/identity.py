"""Which base weights these are: a digest that takes a fraction of a second, so that a run can say what it began with.

SHA-256 over the name, shape and dtype of every tensor that the model would save, and over a sample of its bytes: WINDOW
bytes of each row, from a place that moves on from row to row, so that other weights, and rows or columns in another
order, give another digest. It is no proof: who changes one number in the middle of a row may not be seen.
"""

import hashlib

import torch
from transformers import PreTrainedModel

WINDOW = 32
SHIFT = 16  # from row to row
SMALL = 2**14  # a tensor of so many bytes is read whole
MIN_ROW, BLOCK = 128, 1024  # where rows have fewer bytes, as packed weights do, a sample is of every block


def weights_identity(model: PreTrainedModel) -> str | None:
    """The digest, in hexadecimal; the same on every device, and after saving and loading.

    None where it is too late to say: on some processors bitsandbytes lays nf4 out anew at the first pass, in a form
    that it does not turn back into what it was.
    """
    states = [getattr(parameter, "quant_state", None) for parameter in model.parameters()]
    if any(getattr(state, "packing_format_for_cpu", False) for state in states):
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor):  # some layers also save settings
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(_sample(tensor))
    return digest.hexdigest()


def _sample(tensor: torch.Tensor) -> bytes:
    if tensor.is_meta:  # weights that are read from disk as a pass reaches them
        return b""
    content = tensor.detach().reshape(-1).view(torch.uint8)
    if content.numel() > SMALL:
        row = tensor.shape[-1] * tensor.element_size()
        step = (row if row >= MIN_ROW else BLOCK) - SHIFT
        windows = content.as_strided(((content.numel() - WINDOW) // step + 1, WINDOW), (step, 1))
        content = torch.cat((windows.reshape(-1), content[-WINDOW:]))
    return content.cpu().numpy().tobytes()
