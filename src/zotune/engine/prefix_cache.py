"""The prefix cache: keys and values of prompts under the base model, each token's once, kept across steps.

Only an activated adapter leaves prompts alone, so only there may this be kept: it depends on neither theta, probe nor
step. Prompts are cut into blocks of BLOCK tokens; a block is known by its tokens and the block before it, so that
prompts which begin alike share blocks (a radix tree, block by block), and is always computed alone on top of the
blocks before it: its bits depend on the tokens alone, whatever was evicted, computed or asked for in between.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch

from zotune.engine.protocol import TokenIds

BLOCK = 64
_ROOT = 0


class KVPool:
    """Keys and values of single tokens in numbered slots: per layer [slots, heads, head size]."""

    def __init__(self) -> None:
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.bytes_per_token = 0
        self._free: list[int] = []
        self._capacity = 0

    def take(self, count: int) -> list[int]:
        """Numbers of `count` free slots; the pool grows where there are not enough."""
        while len(self._free) < count:
            more = max(1024, self._capacity)
            self._free.extend(range(self._capacity + more - 1, self._capacity - 1, -1))
            self._capacity += more
        taken = self._free[-count:] if count else []
        del self._free[len(self._free) - count :]
        return taken

    def give_back(self, slots: list[int]) -> None:
        self._free.extend(slots)

    def store(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write keys and values [tokens, heads, head size] of one layer."""
        if layer == len(self.keys):
            self.keys.append(keys.new_empty((0, *keys.shape[1:])))
            self.values.append(values.new_empty((0, *values.shape[1:])))
            self.bytes_per_token += (keys[0].numel() + values[0].numel()) * keys.element_size()
        for pool, new in ((self.keys, keys), (self.values, values)):
            if pool[layer].shape[0] < self._capacity:
                grown = new.new_empty((self._capacity, *new.shape[1:]))
                grown[: pool[layer].shape[0]] = pool[layer]
                pool[layer] = grown
            pool[layer].index_copy_(0, slots, new)


@dataclass
class _Block:
    key: tuple[int, TokenIds]
    number: int
    slots: list[int]


class PrefixCache:
    """Blocks under a budget of bytes, least recently used out.

    What one forward pass needs is kept until `trim`, also beyond the budget: asked for more than fits, the cache slows
    down and never fails.
    """

    def __init__(self, budget_bytes: float) -> None:
        self.budget_bytes = budget_bytes
        self.pool = KVPool()
        self.evictions = 0
        self._blocks: OrderedDict[tuple[int, TokenIds], _Block] = OrderedDict()
        self._num_tokens = 0
        self._next = _ROOT + 1

    @property
    def num_bytes(self) -> int:
        return self._num_tokens * self.pool.bytes_per_token

    def slots(self, prompt: TokenIds, compute: Callable[[TokenIds, list[int], list[int]], None]) -> list[int]:
        """Slots of all tokens of a prompt, computed where they are not there.

        Args:
            compute: called with a block's tokens, the slots before it and its own, to fill these.
        """
        slots: list[int] = []
        found: list[_Block] = []
        parent = _ROOT
        for start in range(0, len(prompt), BLOCK):
            key = (parent, prompt[start : start + BLOCK])
            block = self._blocks.get(key)
            if block is None:
                block = _Block(key, self._next, self.pool.take(len(key[1])))
                self._next += 1
                compute(key[1], slots, block.slots)
                self._blocks[key] = block
                self._num_tokens += len(block.slots)
            found.append(block)
            slots = slots + block.slots
            parent = block.number
        for block in reversed(found):  # a block is always younger than what builds on it, so leaves go first
            self._blocks.move_to_end(block.key)
        return slots

    def trim(self) -> None:
        """Evict until the budget holds."""
        while self._blocks and self.num_bytes > self.budget_bytes:
            _, block = self._blocks.popitem(last=False)
            self.pool.give_back(block.slots)
            self._num_tokens -= len(block.slots)
            self.evictions += 1


class NoPrefixCache(PrefixCache):
    """Keeps nothing beyond a forward pass: the ablation."""

    def __init__(self) -> None:
        super().__init__(budget_bytes=0)
