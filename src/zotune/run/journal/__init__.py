"""The journal: the append-only record that, with the seed in its first line, is the whole run.

Its first line (`header`) holds what a replay starts from and no step changes. Then comes a line a step (`entries`),
with a checksum that also covers the line before (`lines`). `file` appends them, `reading` checks them, and `history`
rebuilds theta from them bit for bit. It does not hold what can be measured again: see metrics.py.
"""

from zotune.run.journal.entries import Checkpointed, Entry
from zotune.run.journal.file import Journal
from zotune.run.journal.header import Header
from zotune.run.journal.history import NeedsModel, Point, history, latest, replay
from zotune.run.journal.reading import read_journal

__all__ = [
    "Checkpointed",
    "Entry",
    "Header",
    "Journal",
    "NeedsModel",
    "Point",
    "history",
    "latest",
    "read_journal",
    "replay",
]
