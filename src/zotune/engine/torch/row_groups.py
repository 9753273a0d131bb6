"""Rows of a pass that belong to groups, such as those of one probe or of one prompt, in any order and number.

A product of each group with something of its own is a batched one, and takes rows as [groups, rows of a group, ...]:
groups with fewer rows than the largest are filled with others, whose results nobody reads.
"""

import numpy as np
import torch


class RowGroups:
    """Which group each row is of.

    Args:
        owners: the group of each row.
    """

    def __init__(self, owners: np.ndarray, num_groups: int, device: torch.device) -> None:
        counts = np.bincount(owners, minlength=num_groups)
        self.num_groups = num_groups
        self.most = int(counts.max())
        order = np.argsort(owners, kind="stable")
        first = np.cumsum(counts) - counts
        places = np.empty_like(order)
        places[order] = owners[order] * self.most + np.arange(len(order)) - first[owners[order]]
        rows = np.zeros(num_groups * self.most, dtype=np.int64)
        rows[places] = np.arange(len(order))
        self._in_order = np.array_equal(rows, np.arange(len(order)))
        self.owners, self._places, self._rows = (torch.from_numpy(each).to(device) for each in (owners, places, rows))

    def __len__(self) -> int:
        return len(self.owners)

    def apart(self, rows: torch.Tensor) -> torch.Tensor:
        """[rows, ...] as [groups, most, ...]."""
        taken = rows if self._in_order else rows[self._rows]
        return taken.reshape(self.num_groups, self.most, *rows.shape[1:])

    def together(self, groups: torch.Tensor) -> torch.Tensor:
        """[groups, most, ...] as [rows, ...], in their order."""
        rows = groups.flatten(0, 1)
        return rows if self._in_order else rows[self._places]
