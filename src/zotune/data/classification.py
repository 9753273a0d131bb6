"""From records to token ids for a model with a classification head: a text or a pair of texts, and the labels' numbers.

The tokenizer joins a pair with its own special tokens, and cuts the longer one where both are too long (transformers'
`longest_first`). What the user has a template for is one text.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from transformers import PreTrainedTokenizerBase as Tokenizer

from zotune.data.records import Record
from zotune.data.tasks import TASKS, Task
from zotune.data.templates import Encoded, check_known
from zotune.data.texts import TextExample, prompt_values
from zotune.errors import InputError
from zotune.zo.protocol import Example, TokenIds

LEAST_ROOM = 8  # tokens of a text, special ones included, behind a soft prompt


class ClassificationEncoder:
    """Encodes the texts of one task; candidate number n of an example is the token id n, its label.

    Args:
        names: the data's names of the task's fields, where they differ.
        max_length: the most tokens of an example, special ones included.
        virtual_tokens: ids of a soft prompt, which begin every text and count towards `max_length`.
        num_embeddings: how many tokens the model knows; None: as many as the tokenizer.

    Raises:
        InputError: a task with a mask, or without labels.
    """

    activated = False
    invocation: TokenIds = ()

    def __init__(
        self, tokenizer: Tokenizer, task: Task, names: Mapping[str, str], max_length: int,
        virtual_tokens: TokenIds = (), num_embeddings: int | None = None,
    ) -> None:  # fmt: skip
        if task.has_mask:
            raise InputError("--template: a classification head reads no {mask}; leave it out, or take --head lm")
        self.tokenizer, self.task, self.max_length = tokenizer, task, max_length
        self._names = {} if task.rows is not None else names
        self._virtual, self._num_embeddings = virtual_tokens, num_embeddings
        self._room = max_length - len(virtual_tokens)
        if virtual_tokens and self._room < LEAST_ROOM:
            raise InputError(
                f"--prompt-tuning.num-virtual-tokens: {len(virtual_tokens)} virtual tokens leave no room for a text "
                f"within {max_length} tokens (--max-length)"
            )
        self._is_own = task.name not in TASKS or task.template != TASKS[task.name].template
        self._labels = tuple((label,) for label in range(len(task.labels)))

    def encode(self, texts: Sequence[TextExample]) -> Encoded:
        """Examples in the order of `texts`."""
        examples, num_truncated = [], 0
        for text in texts:
            values = prompt_values(Record(text.columns, text.where), self.task, self._names)
            parts = list(values.values())
            if len(parts) != 2 or self._is_own:
                parts = [text.prompt if self._is_own else " ".join(parts)]
            found = self.tokenizer(*parts, verbose=False)
            if len(found.input_ids) > self._room:
                num_truncated += 1
                found = self.tokenizer(*parts, truncation="longest_first", max_length=self._room, verbose=False)
            check_known(self.tokenizer, tuple(found.input_ids), self._num_embeddings, text.where)
            kinds = found.get("token_type_ids", [])
            examples.append(
                Example(
                    self._virtual + tuple(found.input_ids), (), self._labels, text.label, mask_at=0,
                    second_at=len(self._virtual) + kinds.index(1) if 1 in kinds else None,
                    columns=MappingProxyType(dict(text.columns)), said=text.said,
                )
            )  # fmt: skip
        return Encoded(examples, num_truncated)
