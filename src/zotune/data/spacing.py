"""What stands between a prompt and a label word where nobody said: a space, where a writer would put one.

lm-evaluation-harness and MeZO's templates always put one (`target_delimiter`, unless a task changes it). That is wrong
behind "(" or "Score=", and in Chinese.
"""

import unicodedata

_JOINS = "=/\\_#@$<"
"""Characters that what follows is written against."""

_UNSPACED = (  # scripts and punctuation without spaces between words: first and last code point
    (0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3000, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF00, 0xFFEF), (0x20000, 0x3FFFF),
)  # fmt: skip


def separator(before: str, word: str) -> str:
    """A space or nothing, between the text before a word and the word as it is written."""
    last = before[-1:]
    if not last or last.isspace() or word[:1].isspace():
        return ""
    opening = (
        unicodedata.category(last) in ("Ps", "Pi")
        or last in "\u00bf\u00a1"
        or (last in "\"'`" and (len(before) == 1 or before[-2].isspace() or before[-2] in "([{=:"))
    )
    return "" if opening or last in _JOINS or _unspaced(last) or _unspaced(word[:1]) else " "


def _unspaced(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _UNSPACED)
