"""Adapters in lm-evaluation-harness: a model `zotune` for it, on our engines.

    python -m zotune.lm_eval run --model zotune --model_args adapter=RUN/adapter --tasks hellaswag

Requests with the same context are one example with several candidates, so that a context is computed once; keys and
values of contexts that begin alike, as by few-shot examples, are kept. Texts become tokens as the harness' own `hf`
model has it, so that both give the same numbers. An activated adapter acts from its invocation on, where the context
has it, and not at all where it has not: as in PEFT.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ImportError(f'zotune.lm_eval needs pip install "zotune[lm-eval]": {error}') from error

from zotune.adapter.spec import LoraSpec
from zotune.errors import InputError
from zotune.inference import open_adapter
from zotune.values import is_whole
from zotune.zo.protocol import AT_THETA, Example, Sampling, Theta, TokenIds

logger = logging.getLogger("zotune")
BARE = LoraSpec(rank=1, alpha=1.0, target_modules=(), invocation_tokens=(0,))  # activated: contexts are kept
DEFAULT_LENGTH = 2048
HARNESS_DEVICE = "cuda:0"  # which the harness names by default

Request = tuple[Any, list[int], list[int]]
"""What the harness asks for, and the token ids of context and continuation."""


class Context(NamedTuple):
    """Tokens that something follows, and where in them an activated adapter begins to act."""

    tokens: TokenIds
    start: int | None


@register_model("zotune")
class ZotuneLM(TemplateLM):
    """A model of the harness: base model and adapter on one of our engines.

    Args:
        adapter: an adapter folder; None: the bare model.
        model, pretrained: the base model; default: that of the adapter.
        batch_size: how many contexts go to the engine at a time.
        max_length: the most tokens of context and continuation; default: the model's context.
        add_bos_token: whether texts begin with the start token; default: as the tokenizer has it.
        settings: engine, dtype, device, num_threads, chat_template, ... as of `zotune evaluate`.

    Raises:
        InputError: something asked for cannot be done.
    """

    def __init__(
        self,
        adapter: str | None = None,
        model: str | None = None,
        pretrained: str | None = None,
        batch_size: int | str = 64,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        device: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if device == HARNESS_DEVICE and not torch.cuda.is_available():  # where nobody named one
            device = None
        opened = open_adapter(adapter, BARE, {"model": model or pretrained, "device": device, **settings})
        if opened.model.is_masked:
            raise InputError("--model: the harness asks causal models; this one is masked")
        self.engine, self.theta, self.spec = opened.engine, opened.theta, opened.spec
        self.tokenizer: Any = opened.model.tokenizer
        self._ends = opened.model.stop_token_ids
        self._name = str(adapter or opened.model.path)
        self.batch_size = int(batch_size) if is_whole(batch_size) or str(batch_size).isdigit() else 64
        self.add_bos_token = add_bos_token
        room = len(self.spec.virtual_tokens)
        self.max_length = (max_length or opened.model.context or DEFAULT_LENGTH) - room
        self._without = {name: np.zeros_like(value) for name, value in self.theta.items()}

    # ---- what the harness wants to know --------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else int(start)

    @property
    def max_gen_toks(self) -> int:
        return 256

    @property
    def tokenizer_name(self) -> str:
        return self._name.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )  # fmt: skip

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        special = self.add_bos_token if add_special_tokens is None else add_special_tokens
        start = self.tokenizer.decode(self.prefix_token_id)
        if add_special_tokens is None and start and string.startswith(start):
            special = False
        given = {} if special is None else {"add_special_tokens": special}
        return list(self.tokenizer(string, verbose=False, **given).input_ids)

    # ---- what it asks for ----------------------------------------------------------------------------------------

    def _loglikelihood_tokens(self, requests: Sequence[Request], **_: Any) -> list[tuple[float, bool]]:
        groups: dict[Context, list[tuple[int, TokenIds]]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            kept = tuple((context + continuation)[-(self.max_length + 1) :])
            for where, text in self._pieces(kept, len(kept) - len(continuation)):
                groups.setdefault(where, []).append((index, text))
        sums, are_greedy = [0.0] * len(requests), [True] * len(requests)
        contexts = sorted(groups, key=lambda where: len(where.tokens))  # like lengths are computed together
        for first in range(0, len(contexts), self.batch_size):
            chunk = contexts[first : first + self.batch_size]
            wanted = [[text for _, text in groups[where]] for where in chunk]
            for where, row, written in zip(chunk, self._sums(chunk, wanted), self._greedy(chunk, wanted), strict=True):
                for (index, text), value in zip(groups[where], row, strict=True):
                    sums[index] += float(value)
                    are_greedy[index] &= written[: len(text)] == text
        answers = list(zip(sums, are_greedy, strict=True))
        for (said, _context, _continuation), answer in zip(requests, answers, strict=True):
            if said is not None:
                self.cache_hook.add_partial("loglikelihood", said, answer)
        self._say_reuse()
        return answers

    def _pieces(self, whole: TokenIds, length: int) -> list[tuple[Context, TokenIds]]:
        """A continuation behind `length` tokens: cut in two where the adapter begins to act in the middle of it."""
        start = self._start(whole[:-1])
        if start is None or start < length:
            return [(Context(whole[:length], start), whole[length:])]
        return [
            (Context(whole[:length], None), whole[length : start + 1]),
            (Context(whole[: start + 1], start), whole[start + 1 :]),
        ]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        totals = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            parts: list[Request] = [(None, *make_disjoint_window(window)) for window in windows]
            totals.append(sum(value for value, _ in self._loglikelihood_tokens(parts)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), totals[-1])
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        texts: list[str] = []
        for context, arguments in (request.args for request in requests):
            asked: Any = dict(normalize_gen_kwargs(arguments, self.max_gen_toks))
            stops = handle_stop_sequences(asked.pop("until", None), self.tokenizer.decode(self.eot_token_id))
            num, temperature = asked.pop("max_gen_toks"), asked.pop("temperature", 0.0) or 0.0
            if num >= self.max_length:
                raise InputError(f"max_gen_toks {num} must be below the model's context of {self.max_length} tokens")
            tokens = tuple(self.tok_encode(context)[-(self.max_length - num) :])
            sampling = Sampling(num, temperature, stop_token_ids=self._ends, top_p=asked.pop("top_p", 1.0) or 1.0)
            texts.append(self._written(tokens, sampling, stops))
            self.cache_hook.add_partial("generate_until", (context, arguments), texts[-1])
        self._say_reuse()
        return texts

    # ---- what the engine is asked --------------------------------------------------------------------------------

    def _start(self, tokens: TokenIds) -> int | None:
        """Where an activated adapter begins to act: at the last occurrence of its invocation. None: nowhere."""
        part = self.spec.invocation_tokens if self.theta else None
        if not part:
            return None
        starts = [at for at in range(len(tokens) - len(part) + 1) if tokens[at : at + len(part)] == part]
        return starts[-1] if starts else None

    def _example(self, where: Context, candidates: Sequence[TokenIds] = ((),)) -> Example:
        if self.spec.scope == "everywhere":
            return Example(self.spec.virtual_tokens + where.tokens, (), tuple(candidates))
        at = len(where.tokens) - 1 if where.start is None else where.start
        return Example(where.tokens[:at], where.tokens[at:], tuple(candidates))

    def _by_theta(self, contexts: Sequence[Context]) -> Iterator[tuple[Theta, list[int]]]:
        """The places of the contexts in which the adapter acts, and of the others."""
        acts = [self.spec.scope == "everywhere" or where.start is not None for where in contexts]
        for theta, wanted in ((self.theta, True), (self._without, False)):
            if places := [place for place, each in enumerate(acts) if each == wanted]:
                yield theta, places

    def _sums(self, contexts: Sequence[Context], wanted: Sequence[Sequence[TokenIds]]) -> list[np.ndarray]:
        """The log-probabilities of each context's continuations."""
        made = [self._example(*pair) for pair in zip(contexts, wanted, strict=True)]
        found: list[np.ndarray] = [np.zeros(0)] * len(made)
        for theta, places in self._by_theta(contexts):
            scores = self.engine.score(theta, [AT_THETA], [made[place] for place in places])
            for place, row in zip(places, scores.log_probs[0], strict=True):
                found[place] = row[: len(wanted[place])]
        return found

    def _greedy(self, contexts: Sequence[Context], wanted: Sequence[Sequence[TokenIds]]) -> list[TokenIds]:
        """The likeliest continuation of each context: its first token, and all where one of `wanted` begins so."""
        found = self._generated(contexts, Sampling(1))
        longer = [
            place
            for place, texts in enumerate(wanted)
            if any(len(text) > 1 and text[:1] == found[place] for text in texts)
        ]
        if longer:
            sampling = Sampling(max(len(text) for place in longer for text in wanted[place]))
            written = self._generated([contexts[place] for place in longer], sampling)
            for place, tokens in zip(longer, written, strict=True):
                found[place] = tokens
        return found

    def _generated(self, contexts: Sequence[Context], sampling: Sampling) -> list[TokenIds]:
        found: list[TokenIds] = [()] * len(contexts)
        for theta, places in self._by_theta(contexts):
            prompts = [self._example(contexts[place]) for place in places]
            (rows,) = self.engine.generate(theta, [AT_THETA], prompts, sampling)
            for place, tokens in zip(places, rows, strict=True):
                found[place] = tuple(tokens)
        return found

    def _written(self, context: TokenIds, sampling: Sampling, stops: list[str]) -> str:
        (tokens,) = self._generated([Context(context, self._start(context))], sampling)
        text = str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))
        return str(postprocess_generated_text(text, stops, None))

    def _say_reuse(self) -> None:
        stats = self.engine.stats
        whole = max(1, stats.tokens_reused + stats.tokens_computed)
        logger.info(
            "tokens computed: %d, reused: %d (%.1f %%)",
            stats.tokens_computed, stats.tokens_reused, 100 * stats.tokens_reused / whole,
        )  # fmt: skip


def main() -> None:
    """The harness' own command, which knows the model `zotune`."""
    from lm_eval.__main__ import cli_evaluate

    logger.setLevel(logging.INFO)
    cli_evaluate()


if __name__ == "__main__":
    main()
