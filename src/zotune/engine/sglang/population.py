"""Texts of a population: its members (probes) take the LoRA slots one after the other, in one batch that does not stop.

A member has a slot until all its prompts have their texts. Then the next member is written there and its requests join
the batch, while those of other members go on: nothing waits for the longest text but what needs its slot. SGLang
admits requests as its memory and limits allow; the others wait in its queue, and one that has to give its memory back
comes again with what it has written.

In scope activated all members read the prompts' KV of the base model. In scope everywhere each has a namespace of the
tree of its own, in which what all its prompts begin with is computed first, once.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from zotune.engine.sglang.driver import Driver
from zotune.engine.sglang.held_prompts import MIN_SHARED, HeldPrompts
from zotune.engine.sglang.jobs import Job, Passes, Text
from zotune.engine.sglang.rows import common_prefix
from zotune.engine.torch.token_choice import TokenChoice
from zotune.zo.protocol import Example, Sampling, TokenIds

KEPT_NOISE_BYTES = 2**28  # members come to a place of a prompt at different times


class Population:
    """One call's.

    Args:
        held: where the prompts of scope activated are; None in scope everywhere.
        slots: those that may be written, at least one.
        write: makes members the adapters of slots.
    """

    def __init__(
        self,
        driver: Driver,
        held: HeldPrompts | None,
        slots: Sequence[int],
        write: Callable[[Mapping[int, int]], None],
        prompts: Sequence[Example],
        sampling: Sampling,
    ) -> None:
        self.driver, self.held, self.slots, self.write = driver, held, slots, write
        self.prompts, self.sampling = prompts, sampling
        self.tokens_needed = 0  # for the texts so far: each prompt whole, and each new token that another one follows
        starts = [example.prompt + example.invocation for example in prompts]
        shared = common_prefix([start[:-1] for start in starts]) if len(prompts) > 1 and held is None else ()
        self._shared = shared if len(shared) >= MIN_SHARED else ()

    def texts(self, num_members: int) -> Passes[list[list[TokenIds]]]:
        """What each prompt goes on with under each member: [member][prompt], stop tokens left out."""
        found: list[list[TokenIds]] = [[()] * len(self.prompts) for _ in range(num_members)]
        choice = TokenChoice(self.sampling, self.sampling.row_seeds(len(self.prompts)), KEPT_NOISE_BYTES)
        if self.held is None:
            yield from self._go_on(range(len(self.prompts)), choice, found)
            self.driver.flush()
            return found
        for chunk in self.held.chunks([example.prompt for example in self.prompts]):
            locks = yield from self.held.hold([self.prompts[i].prompt for i in chunk])
            try:
                yield from self._go_on(chunk, choice, found)
            finally:
                self.driver.unlock(locks)
        return found

    def _go_on(self, chunk: Sequence[int], choice: TokenChoice, found: list[list[TokenIds]]) -> Passes[None]:
        """All members with some of the prompts."""
        waiting = deque(range(len(found)))
        unwritten: dict[int, int] = {}  # of each member that has a slot, how many texts are not done

        def take(slots: Sequence[int]) -> list[Job]:
            places = {slot: waiting.popleft() for slot in slots[: len(waiting)]}
            self.write(places)
            unwritten.update(dict.fromkeys(places.values(), len(chunk)))
            return [job for slot, member in places.items() for job in self._first(slot, member, chunk)]

        def ended(jobs: Sequence[Job]) -> list[Job]:
            more, free = list[Job](), list[int]()
            for job in jobs:
                assert job.slot is not None
                assert job.text is not None
                member = job.text.probe
                if job.keep:
                    more += self._rest(job.slot, member, chunk)
                    continue
                found[member][job.text.prompt] = self._until_stop(job.new_tokens)
                self.tokens_needed += len(job.tokens) + len(job.new_tokens) - 1
                unwritten[member] -= 1
                if not unwritten[member]:
                    free.append(job.slot)
            return more + take(free)

        yield from self.driver.go_on(take(self.slots), choice, ended)
        assert not any(unwritten.values())
        assert not waiting

    def _first(self, slot: int, member: int, chunk: Sequence[int]) -> list[Job]:
        """What a member begins with."""
        if not self._shared:
            return self._rest(slot, member, chunk)
        text = Text(member, chunk[0], 0, ())
        return [Job(self._shared, slot=slot, namespace=self._namespace(member), keep=True, text=text)]

    def _rest(self, slot: int, member: int, chunk: Sequence[int]) -> list[Job]:
        return [self._job(slot, member, index) for index in chunk]

    def _job(self, slot: int, member: int, index: int) -> Job:
        example, stop = self.prompts[index], self.sampling.stop_token_ids
        tokens, text = example.prompt + example.invocation, Text(member, index, self.sampling.max_new_tokens, stop)
        if self.held is None:
            return Job(tokens, slot=slot, namespace=self._namespace(member), text=text)
        return Job(tokens, slot=slot, max_cached=min(len(example.prompt), len(tokens) - 1), exact=True, text=text)

    def _until_stop(self, tokens: TokenIds) -> TokenIds:
        ends = [place for place, token in enumerate(tokens) if token in self.sampling.stop_token_ids]
        return tokens[: ends[0]] if ends else tokens

    def _namespace(self, member: int) -> str:
        """Where the KV of a member lies in the tree; all of them are flushed at the end of the call."""
        return self.driver.namespace(f"member-{member}")
