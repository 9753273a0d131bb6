"""From records to token ids for a masked language model: a text with one mask, where the label words are compared.

The whole text goes through the tokenizer at once, with the special tokens that it puts around a text. A label word is
the one token that it is behind a space, as in LM-BFF's and MeZO's code; words of several tokens are refused, since a
mask stands for one. What is too long loses the last tokens of its longest field, as transformers' `longest_first` does.
"""

from collections.abc import Mapping, Sequence
from string import Formatter
from types import MappingProxyType

from transformers import PreTrainedTokenizerBase as Tokenizer

from zotune.data.records import Record
from zotune.data.tasks import MASK, MASKED_CONVERSIONS, Task
from zotune.data.templates import Encoded, check_known
from zotune.data.texts import TextExample, prompt_values
from zotune.errors import InputError
from zotune.zo.protocol import Example, TokenIds


class MaskedEncoder:
    """Encodes the texts of one task with the tokenizer of a masked model.

    Args:
        names: the data's names of the task's fields, where they differ.
        max_length: the most tokens of a text, special ones included.
        virtual_tokens: ids of a soft prompt, which begin every text and count towards `max_length`.
        num_embeddings: how many tokens the model knows; None: as many as the tokenizer.

    Raises:
        InputError: a task, label words or a tokenizer that do not go with a mask.
    """

    activated = False
    invocation: TokenIds = ()

    def __init__(
        self,
        tokenizer: Tokenizer,
        task: Task,
        names: Mapping[str, str],
        max_length: int,
        virtual_tokens: TokenIds = (),
        num_embeddings: int | None = None,
    ) -> None:
        if not task.labels:
            raise InputError(
                f"--task: {task.name} has no label words, and a masked model compares words in place of a mask; take a "
                "classification with --labels, or a causal model"
            )
        self.tokenizer, self.max_length = tokenizer, max_length
        self.task = task.for_masked
        self._names = {} if task.rows is not None else names
        self._virtual, self._num_embeddings = virtual_tokens, num_embeddings
        mask = tokenizer.mask_token_id
        if mask is None:
            raise InputError("--model: its tokenizer has no mask token, which a masked model needs")
        self._mask: int = mask
        self.words = tuple(map(self._word, self.task.label_words))
        for index, word in enumerate(self.words):
            if (first := self.words.index(word)) != index:
                same = (self.task.label_words[i] for i in (first, index))
                raise InputError(f"--labels: {' and '.join(map(repr, same))} are the same token for this tokenizer")

    def encode(self, texts: Sequence[TextExample]) -> Encoded:
        """Examples in the order of `texts`."""
        examples, num_truncated = [], 0
        for text in texts:
            token_ids, cut = self._encoded(text)
            num_truncated += cut
            if token_ids.count(self._mask) != 1:
                raise InputError(f"{text.where}: the text has the mask token {self.tokenizer.mask_token!r} in it")
            check_known(self.tokenizer, token_ids, self._num_embeddings, text.where)
            examples.append(
                Example(
                    self._virtual + token_ids, (), self.words, text.label,
                    mask_at=len(self._virtual) + token_ids.index(self._mask),
                    columns=MappingProxyType(dict(text.columns)), said=text.said,
                )
            )  # fmt: skip
        return Encoded(examples, num_truncated)

    def _encoded(self, text: TextExample) -> tuple[TokenIds, bool]:
        """Token ids, and whether some were left out."""
        written, spans = self._written(text)
        room = self.max_length - len(self._virtual)
        plain: TokenIds = tuple(self.tokenizer(written, verbose=False).input_ids)
        if len(plain) <= room:
            return plain, False
        if not self.tokenizer.is_fast:
            raise InputError(
                f"{text.where}: the text has {len(plain)} tokens, more than --max-length {self.max_length}, and this "
                "tokenizer does not say where they lie in it, which cutting it takes"
            )
        found = self.tokenizer(written, verbose=False, return_offsets_mapping=True)
        of_fields = [
            [i for i, (first, last) in enumerate(found.offset_mapping) if start <= first < last <= end]
            for start, end in spans
        ]
        left_out: set[int] = set()
        while len(plain) - len(left_out) > room:
            longest = max(of_fields, key=len)
            if len(longest) <= 1:
                raise InputError(
                    f"{text.where}: the template alone has {len(plain) - len(left_out)} tokens, which leaves no room "
                    f"for the text within --max-length {self.max_length}"
                )
            left_out.add(longest.pop())
        return tuple(token for i, token in enumerate(plain) if i not in left_out), True

    def _written(self, text: TextExample) -> tuple[str, list[tuple[int, int]]]:
        """The text with its mask, and where the fields lie in it."""
        values = prompt_values(Record(text.columns, text.where), self.task, self._names)
        written, spans = "", []
        for literal, name, _, conversion in Formatter().parse(self.task.template):
            written += literal
            if name == MASK:
                written += str(self.tokenizer.mask_token)
            elif name:
                value = MASKED_CONVERSIONS[conversion](values[name]) if conversion else values[name]
                spans.append((len(written), len(written) + len(value)))
                written += value
        return written, spans

    def _word(self, word: str) -> TokenIds:
        tokens: TokenIds = tuple(self.tokenizer(f" {word.strip()}", add_special_tokens=False, verbose=False).input_ids)
        if len(tokens) != 1:
            shown = ", ".join(map(repr, self.tokenizer.convert_ids_to_tokens(list(tokens)))) or "none"
            raise InputError(
                f"--labels: {word!r} is {len(tokens)} tokens for this tokenizer ({shown}), and a mask stands for one; "
                "choose another word"
            )
        if tokens[0] == self.tokenizer.unk_token_id:
            raise InputError(f"--labels: {word!r} is no word that this tokenizer knows")
        check_known(self.tokenizer, tokens, self._num_embeddings, "--labels")
        return tokens
