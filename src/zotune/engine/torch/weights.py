"""Theta as the model's own parameters: a mapping that reads and writes them, piece by piece.

A piece is a parameter, or so many rows of one that no piece has more than PIECE_SIZE numbers, `name[first:last]`. It is
a tensor of theta like any other, with noise of its own, and the only thing that is ever held twice. Tied parameters
are one. Reading gives float32; writing rounds once to the parameter's dtype.
"""

from collections.abc import Iterator, MutableMapping
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from zotune.files import replace_folder

PIECE_SIZE = 2**20
SHARD_SIZE = "1GB"  # of files: what saving holds in memory beside the model


class ModelWeights(MutableMapping[str, np.ndarray]):
    """The parameters of `model`. `pieces` names those of each parameter, by id, with their first and last rows."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.pieces: dict[int, list[tuple[str, int, int]]] = {}
        self._views: dict[str, torch.Tensor] = {}
        for name, parameter in model.named_parameters():
            rows = max(1, PIECE_SIZE // max(1, parameter[:1].numel())) if parameter.dim() else 1
            count = parameter.shape[0] if parameter.dim() else 1
            self.pieces[id(parameter)] = []
            for first in range(0, count, rows):
                last = min(first + rows, count)
                piece = name if count <= rows else f"{name}[{first}:{last}]"
                self.pieces[id(parameter)].append((piece, first, last))
                self._views[piece] = parameter.data[first:last] if parameter.dim() else parameter.data

    def __getitem__(self, name: str) -> np.ndarray:
        values: np.ndarray = self._views[name].float().cpu().numpy()
        return values

    def __setitem__(self, name: str, value: np.ndarray) -> None:
        self._views[name].copy_(torch.from_numpy(value))

    def __delitem__(self, name: str) -> None:
        raise TypeError("a model keeps its parameters")

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(view.shape) for name, view in self._views.items()}

    def save(self, folder: Path, tokenizer: Tokenizer | None) -> None:
        """Write a model folder of transformers. It replaces an older one whole, so a reader never sees half of one.

        Raises:
            OSError: with the name of the folder, which is as it was.
        """

        def write(new: Path) -> None:
            self.model.save_pretrained(new, max_shard_size=SHARD_SIZE)
            if tokenizer is not None:
                tokenizer.save_pretrained(new)

        replace_folder(folder, write)
