"""From text to token ids: prompt, invocation and candidates are tokenized apart and joined.

So the cut between them is always at the same ids, which an activated adapter needs (arXiv 2504.12397). For the
built-in templates this equals tokenizing the whole text, unless a tokenizer has a token for a mark and the line break
behind it. Truncation takes tokens from the left of the prompt only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

from transformers import PreTrainedTokenizerBase as Tokenizer

from zotune.data.fragments import Fragments
from zotune.data.tasks import Task
from zotune.data.texts import TextExample
from zotune.errors import InputError
from zotune.zo.protocol import Example, TokenIds


@dataclass(frozen=True)
class Encoded:
    """Examples ready for an engine, and how many of their prompts lost tokens on the left."""

    examples: list[Example]
    num_truncated: int


class Encoder:
    """Encodes the texts of one task with one tokenizer.

    Args:
        max_length: the most tokens of prompt + invocation + longest candidate.
        activated: the adapter will act from the invocation on; candidates that contain it are refused.
        virtual_tokens: ids of a soft prompt, which begin every prompt and count towards `max_length`.
        num_embeddings: how many tokens the model knows; None: as many as the tokenizer.
        demonstrations: a text before every prompt, which is never cut.

    Raises:
        InputError: label words or an invocation that cannot be used with this tokenizer.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        task: Task,
        max_length: int,
        activated: bool,
        virtual_tokens: TokenIds = (),
        num_embeddings: int | None = None,
        demonstrations: str = "",
    ) -> None:
        self.tokenizer = tokenizer
        self.fragments = Fragments(tokenizer)
        self.task = task
        self.max_length = max_length
        self.virtual_tokens = virtual_tokens
        self.num_embeddings = num_embeddings
        self._own_start = _special_start(tokenizer)
        self.start = virtual_tokens + self._own_start
        self.invocation = self.fragments.encode(task.invocation)
        self.activated = activated
        if task.invocation and not self.invocation:
            raise InputError(f"--invocation: {task.invocation!r} is no token for this tokenizer")
        if activated and not self.invocation:
            raise InputError(
                "--scope activated needs --invocation, the fixed text that ends every prompt and switches the adapter "
                "on, e.g. --invocation ' It was'; or use --scope everywhere"
            )
        if len(self.start) + 2 > max_length and virtual_tokens:
            raise InputError(
                f"--prompt-tuning.num-virtual-tokens: {len(virtual_tokens)} virtual tokens leave no room for a text "
                f"within {max_length} tokens (--max-length)"
            )
        self.demonstrations = demonstrations
        self.head = self.start + self._before(demonstrations)
        before = task.template + task.invocation
        self.words = tuple(self.fragments.encode(task.spaced(word, task.template), before) for word in task.label_words)
        self._check_words()
        self._check_known(self.invocation, "--invocation")

    def encode(self, texts: Sequence[TextExample]) -> Encoded:
        """Examples in the order of `texts`; a text of task `lm` longer than `max_length` becomes several."""
        examples: list[Example] = []
        num_truncated = 0
        for text in texts:
            if not self.task.classifies and not self.task.template:
                examples.extend(self._blocks(text))
                continue
            if self.task.choice_fields:
                candidates = tuple(self._choice(text, choice) for choice in text.choices)
            else:
                candidates = self.words or (self._completion(text),)
            prompt = self.head + self._prompt(text.prompt)
            room = self.max_length - len(self.invocation) - max(map(len, candidates))
            if room < len(self.head) + 1:
                fixed = self.max_length - room + len(self.virtual_tokens)
                what = f"{'virtual tokens, ' if self.virtual_tokens else ''}invocation and completion"
                if self.demonstrations:
                    fixed += len(self.head) - len(self.start)
                    what = f"demonstrations (--num-demonstrations), {what}"
                raise InputError(
                    f"{text.where}: {what} alone have {fixed} tokens, which leaves no room for a prompt within "
                    f"--max-length {self.max_length}"
                )
            if len(prompt) > room:
                prompt = self.head + prompt[len(prompt) - room + len(self.head) :]
                num_truncated += 1
            self._check_first(prompt, text)
            self._check_known(prompt, text.where)
            if not self.words:
                for candidate in candidates:
                    self._check_known(candidate, text.where)
            columns = MappingProxyType(dict(text.columns))
            more = {"columns": columns, "also_right": text.also_right, "said": text.said}
            examples.append(Example(prompt, self.invocation, candidates, text.label, **more))
        return Encoded(examples, num_truncated)

    def _body(self, text: str) -> TokenIds:
        """The tokens of a prompt or of a plain text behind the start token, which the text may have of its own."""
        # The first fragment keeps what the tokenizer does to the start of a text.
        token_ids = tuple(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
        own = len(self._own_start)
        return token_ids[own:] if own and token_ids[:own] == self._own_start else token_ids

    def _before(self, demonstrations: str) -> TokenIds:
        """The tokens of a text that goes on: those that it has before a letter."""
        if not demonstrations:
            return ()
        whole, letter = self._body(demonstrations + "a"), self.fragments.encode("a", demonstrations)
        return whole[: -len(letter)] if whole[-len(letter) :] == letter else self._body(demonstrations)

    def _prompt(self, text: str) -> TokenIds:
        return self.fragments.encode(text, self.demonstrations) if self.demonstrations else self._body(text)

    def _ended(self, token_ids: TokenIds) -> TokenIds:
        """With one end token, where the tokenizer has one."""
        end = self.tokenizer.eos_token_id
        return token_ids if end is None or token_ids[-1:] == (end,) else (*token_ids, end)

    def _completion(self, text: TextExample) -> TokenIds:
        token_ids = self.fragments.encode(text.completion, text.prompt + self.task.invocation)
        if text.completion and not self.task.is_chat:  # whose template has its own end
            token_ids = self._ended(token_ids)
        if self.activated and _last_start(self.invocation + token_ids, self.invocation) > 0:
            raise InputError(
                f"{text.where}: the completion contains the invocation {self.task.invocation!r} (--invocation)"
            )
        return token_ids

    def _choice(self, text: TextExample, choice: str) -> TokenIds:
        before = text.prompt + self.task.invocation
        token_ids = self.fragments.encode(self.task.spaced(choice, text.prompt), before)
        if not token_ids:
            raise InputError(f"{text.where}: the option {choice!r} is no token for this tokenizer")
        if self.task.whole_answers and not self.task.is_chat:
            token_ids = self._ended(token_ids)
        if self.activated and _last_start(self.invocation + token_ids, self.invocation) > 0:
            raise InputError(
                f"{text.where}: the option {choice!r} contains the invocation {self.task.invocation!r} (--invocation)"
            )
        return token_ids

    def _blocks(self, text: TextExample) -> list[Example]:
        """Pieces of a plain text, every token but the very first of a text without start token predicted once."""
        token_ids = self._ended(self._body(text.completion))
        head = self.start or token_ids[:1]
        body = token_ids if self.start else token_ids[1:]
        size = self.max_length - len(head)
        if not body or size < 1:
            raise InputError(
                f"{text.where}: the text has {len(token_ids)} tokens; at least 2 are needed "
                f"(--max-length {self.max_length})"
            )
        self._check_known(token_ids, text.where)
        columns = MappingProxyType(dict(text.columns))
        return [Example(head, (), (body[i : i + size],), columns=columns) for i in range(0, len(body), size)]

    def _check_words(self) -> None:
        for index, word in enumerate(self.words):
            first = self.words.index(word)
            if first != index:
                names = self.task.label_words
                raise InputError(
                    f"--labels: {names[first]!r} and {names[index]!r} are the same tokens for this tokenizer"
                )
            if not word:
                raise InputError(f"--labels: {self.task.label_words[index]!r} is no token for this tokenizer")
            self._check_known(word, "--labels")
            unknown, text = self.tokenizer.unk_token, self.task.label_words[index]
            if self.tokenizer.unk_token_id in word and str(unknown) not in text:
                raise InputError(f"--labels: {text!r} has characters or words that this tokenizer does not know")
            if self.activated and _last_start(self.invocation + word, self.invocation) > 0:
                raise InputError(
                    f"--labels: {self.task.label_words[index]!r} contains the invocation {self.task.invocation!r}, "
                    "so it could not be told where the adapter starts to act"
                )

    def _check_known(self, token_ids: TokenIds, place: str) -> None:
        check_known(self.tokenizer, token_ids, self.num_embeddings, place)

    def _check_first(self, prompt: TokenIds, text: TextExample) -> None:
        if not prompt and not self.invocation:
            raise InputError(f"{text.where}: the prompt has no tokens, so nothing stands before the completion")


def check_known(tokenizer: Tokenizer, token_ids: TokenIds, num_embeddings: int | None, place: str) -> None:
    """Refuse a token that the tokenizer has and the model has not, such as one that was added to the tokenizer."""
    if num_embeddings is not None and token_ids and (highest := max(token_ids)) >= num_embeddings:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise InputError(
            f"{place}: the token {token!r} has the number {highest}, and the model has embeddings for "
            f"{num_embeddings} tokens: the tokenizer is of another model, or tokens were added to it alone "
            "(see resize_token_embeddings in transformers)"
        )


def _special_start(tokenizer: Tokenizer) -> TokenIds:
    """The special tokens that this tokenizer puts before a text (its BOS, where it has one)."""
    plain, marked = (tokenizer("a", add_special_tokens=special).input_ids for special in (False, True))
    for cut in range(len(marked) - len(plain) + 1):
        if marked[cut : cut + len(plain)] == plain:
            return tuple(marked[:cut])
    return ()


def _last_start(sequence: TokenIds, part: TokenIds) -> int:
    """Where PEFT would switch an activated adapter on: the last occurrence of `part`."""
    starts = [i for i in range(len(sequence) - len(part) + 1) if sequence[i : i + len(part)] == part]
    return starts[-1]
