"""Prompts of scope activated: their KV is the base model's, and stays in SGLang's tree while probes read it."""

from collections.abc import Sequence
from typing import Any

from zotune.engine.sglang.driver import Driver
from zotune.engine.sglang.jobs import Job, Passes
from zotune.engine.sglang.rows import common_prefix
from zotune.errors import InputError
from zotune.zo.protocol import TokenIds

MIN_SHARED = 16  # tokens that must be shared for a pass of their own to pay off
ATTEMPTS = 3  # of a prompt to be computed and locked before it is evicted


class HeldPrompts:
    """Computes what is not in the tree yet, and locks it there until the driver's `unlock`."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def chunks(self, prompts: Sequence[TokenIds]) -> list[list[int]]:
        """Examples whose prompts fit into half of the KV memory together, so that their suffixes fit beside them."""
        chunks: list[list[int]] = [[]]
        held: set[TokenIds] = set()
        for index, prompt in enumerate(prompts):
            size = sum(map(len, held | {prompt}))
            if chunks[-1] and size > self.driver.capacity // 2:
                chunks.append([])
                held = set()
            chunks[-1].append(index)
            held.add(prompt)
        return chunks

    def hold(self, prompts: Sequence[TokenIds]) -> Passes[list[Any]]:
        """Every prompt's KV in the base namespace, computed by the base model, and locked there."""
        locks: list[Any] = []
        missing = self._lock_cached(dict.fromkeys(filter(None, prompts)), locks)
        if missing:
            shared = common_prefix(missing) if len(missing) > 1 else ()
            if len(shared) >= MIN_SHARED:
                yield from self.driver.run([Job(shared, keep=True)])
            yield from self.driver.run([Job(prompt, keep=True) for prompt in missing])
            missing = self._lock_cached(missing, locks)
        for _ in range(ATTEMPTS):  # what those that came after it have evicted, and what others have
            for prompt in missing:
                yield from self.driver.run([Job(prompt, keep=True)])
                self._lock_cached([prompt], locks)
            missing = [prompt for prompt in missing if self.driver.cached(prompt)[0] < len(prompt)]
        if missing:
            self.driver.unlock(locks)
            raise InputError(
                f"--engine sglang: a prompt of {len(missing[0])} tokens does not stay in a KV cache of "
                f"{self.driver.capacity} tokens; raise --sglang.max-total-tokens"
            )
        return locks

    def _lock_cached(self, prompts: Any, locks: list[Any]) -> list[TokenIds]:
        """Lock those prompts that are wholly there; the others."""
        missing = []
        for prompt in prompts:
            length, node = self.driver.cached(prompt)
            if length == len(prompt):
                locks.append(self.driver.lock(node))
            else:
                missing.append(prompt)
        return missing
