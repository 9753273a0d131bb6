"""Token ids of a text that continues another one, as the tokenizer would make them inside a text.

Tokenizers of the SentencePiece family put a space of their own before what they are given. So a fragment is tokenized
behind an anchor, whose tokens are then cut off: the first one that does not become one token with the fragment.
"""

from transformers import PreTrainedTokenizerBase as Tokenizer

from zotune.zo.protocol import TokenIds

_ANCHORS = ("\n", ":", "a")


class Fragments:
    """The fragments of texts for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._break_is_space = self._ids("a\na") == self._ids("a a")  # then it is no anchor
        anchors = _ANCHORS[1:] if self._break_is_space else _ANCHORS
        self._anchors = [(anchor, self._ids(anchor)) for anchor in anchors]

    def encode(self, text: str, before: str = "") -> TokenIds:
        """The ids of a text that continues another one, `before`."""
        if not (self._break_is_space and (text[:1].isspace() or before[-1:].isspace())):
            for anchor, first in self._anchors:
                whole = self._ids(anchor + text)
                if whole[: len(first)] == first:
                    return tuple(whole[len(first) :])
        return tuple(self._ids(text))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
