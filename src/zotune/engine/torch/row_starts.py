"""Where rows that are to be continued start: what of a prompt they share with others, and what each computes first.

In scope activated prompts are the base model's, whatever the probe: they are shared, and the invocation is computed
under each probe. In scope everywhere all of it is a probe's own, but for what all prompts begin with, which is computed
once per probe.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from zotune.engine.torch.everywhere import MIN_SHARED, common_prefix
from zotune.zo.protocol import Example, TokenIds


@dataclass(frozen=True)
class Start:
    """One prompt: what is `before` the tokens that are computed under a probe, and whether it acts on those."""

    before: TokenIds
    tokens: TokenIds
    adapted: bool = True

    @property
    def length(self) -> int:
        return len(self.before) + len(self.tokens)


def make_starts(prompts: Sequence[Example], activated: bool) -> list[Start]:
    """The start of each prompt; something must be computed of each."""
    wholes = [example.prompt + example.invocation for example in prompts]
    if not activated:
        count = common_prefix(wholes) if len(wholes) > 1 else 0
        count = count if count >= MIN_SHARED else 0
        return [Start(whole[:count], whole[count:]) for whole in wholes]
    return [
        Start(example.prompt, example.invocation)
        if example.invocation
        else Start(whole[:-1], whole[-1:], adapted=False)
        for example, whole in zip(prompts, wholes, strict=True)
    ]


def packs(
    starts: Sequence[Start], num_probes: int, num_new: int, max_tokens: float, max_rows: int, shared: bool
) -> Iterator[list[int]]:
    """The numbers of starts whose rows are continued together: of like length, as many as there is room for.

    Args:
        num_new: tokens that each row may get.
        max_tokens: whose KV may be held at once, padding included.
        shared: what is before a start is held once for all probes and all starts behind it, else once for each probe.
    """
    pack: list[int] = []
    longest = own = 0
    befores: set[TokenIds] = set()
    for i in sorted(range(len(starts)), key=lambda i: (starts[i].length, starts[i].before), reverse=True):
        start = starts[i]
        longest, own = max(longest, len(start.before)), max(own, len(start.tokens) + num_new)
        num_groups = len(befores | {start.before}) if shared else num_probes
        rows = (len(pack) + 1) * num_probes
        if pack and (rows > max_rows or rows * own + num_groups * longest > max_tokens):
            yield pack
            pack, befores = [], set()
            longest, own = len(start.before), len(start.tokens) + num_new
        pack.append(i)
        befores.add(start.before)
    yield pack
