"""stub to be replaced on merge"""

import hashlib
from collections.abc import Sequence

from zotune.zo.protocol import Example


def examples_digest(examples: Sequence[Example], version: int = 1) -> str:
    return hashlib.sha256(repr(examples).encode()).hexdigest()
