"""What a journal knows examples by: a digest of their token ids and labels, in their order; with rewards, another of
their records."""

import hashlib
import json
from collections.abc import Sequence

from zotune.zo.protocol import Example

EXAMPLES_VERSION = 2
"""Of new runs. In version 1 it is over Python's own text of the examples, as it was when they had four fields."""

FIELDS = ("prompt", "invocation", "candidates", "label")


def examples_digest(examples: Sequence[Example], version: int = EXAMPLES_VERSION) -> str:
    """SHA-256 over the fields that decide what is computed; a field that examples get later changes nothing."""
    texts = [", ".join(f"{name}={getattr(example, name)!r}" for name in FIELDS) for example in examples]
    if version == 1:
        return _sha256("[" + ", ".join(f"Example({text})" for text in texts) + "]")
    return _sha256("\n".join([f"examples {version}", *texts]))


def columns_digest(examples: Sequence[Example]) -> str:
    """SHA-256 over the records that the examples were made of, of which rewards may read any column."""
    return _sha256("\n".join(json.dumps(dict(example.columns), sort_keys=True, default=str) for example in examples))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
