"""A line of a journal: a JSON object, and in it a CRC-32 that covers the object and the line before.

    crc32_n = crc32(text_n, crc32_(n-1))        (the first line follows from 0)

So a line cannot change, be left out or come from another run without being noticed. In format 1 every line stood alone.
"""

import json
import zlib
from typing import Any


def encode(value: dict[str, Any], before: int = 0) -> tuple[bytes, int]:
    """A line with its end, and its checksum; `before` is the checksum of the line before."""
    text = json.dumps(value, allow_nan=False)
    checksum = zlib.crc32(text.encode(), before)
    return f'{text[:-1]}, "crc32": {checksum}}}\n'.encode(), checksum


def decode(line: bytes, before: int = 0) -> tuple[dict[str, Any], int]:
    """What a line without its end holds, and its checksum.

    Raises:
        ValueError: it is not, to the byte, what `encode` wrote after the line before.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    if not isinstance(value, dict) or "crc32" not in value:
        raise ValueError("it has no checksum")
    del value["crc32"]
    expected, checksum = encode(value, before)
    if line + b"\n" != expected:  # also where other bytes mean the same, such as another space
        raise ValueError("its checksum does not match, or it does not follow the line before")
    return value, checksum
