"""The prefix cache: keys and values of prompts under the base model, each token's once, kept across steps.

Only an activated adapter leaves prompts alone, so only there may this be kept: it depends on neither theta, probe nor
step. It is a radix tree: a node holds the KV of a run of tokens, its children what prompts go on with. Runs begin and
end at multiples of `block` tokens (but for a prompt's end), and KV is always computed block by block, each on top of
the blocks before it: its bits depend on the tokens alone, whatever was evicted, computed or asked for in between.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch

from zotune.engine.torch.piece_attention import Piece
from zotune.zo.protocol import TokenIds

BLOCK = 128  # shorter ones share more of prompts that begin alike; each reads all weights of the model once


class _Node:
    """A run of tokens and its KV [layers, 2, kv heads, tokens, head size]."""

    def __init__(self, tokens: TokenIds, kv: torch.Tensor, parent: "_Node | None") -> None:
        self.tokens = tokens
        self.kv = kv
        self.parent = parent
        self.children: dict[TokenIds, _Node] = {}  # by their first block


class PrefixCache:
    """Prompts under a budget of bytes, least recently used out.

    What one forward pass needs is kept until `trim`, also beyond the budget: asked for more than fits, the cache slows
    down and never fails.

    Args:
        budget_bytes: what is kept between passes.
        block: tokens computed at once, and the grid on which prompts share.
    """

    def __init__(self, budget_bytes: float, block: int = BLOCK) -> None:
        self.budget_bytes = budget_bytes
        self.block = block
        self.num_bytes = 0
        self.evictions = 0
        self._root = _Node((), torch.empty(0), None)
        self._by_use: OrderedDict[_Node, None] = OrderedDict()  # a node always stands behind its children

    def kv(
        self, prompts: Sequence[TokenIds], compute: Callable[[Sequence[Piece]], Sequence[torch.Tensor]]
    ) -> list[list[torch.Tensor]]:
        """The KV of each prompt, run by run, computed where it is not there.

        Args:
            compute: gives the KV of pieces of prompts, each at most a block.
        """
        waiting = list(dict.fromkeys(prompts))
        while waiting:
            waiting = self._add_some(waiting, compute)
        return [self._found(prompt) for prompt in prompts]

    def _add_some(
        self, prompts: Sequence[TokenIds], compute: Callable[[Sequence[Piece]], Sequence[torch.Tensor]]
    ) -> list[TokenIds]:
        """Add the prompts that are not there, but of those that go on with the same block one alone: gives the rest."""
        turn: dict[TokenIds, tuple[TokenIds, list[torch.Tensor]]] = {}  # by the end of their first new block
        rest = []
        for prompt in prompts:
            runs = [node.kv for node in self._match(prompt)]
            piece = Piece.after(runs, prompt, self.block)
            end = prompt[: piece.start + len(piece.tokens)]
            if end in turn:
                rest.append(prompt)
            elif piece.tokens:
                turn[end] = prompt, runs
        unfinished = list(turn.values())
        while unfinished:
            pieces = [Piece.after(list(runs), prompt, self.block) for prompt, runs in unfinished]
            for (_, runs), kv in zip(unfinished, compute(pieces), strict=True):
                runs.append(kv)
            unfinished = [item for item in unfinished if Piece.after(item[1], item[0], self.block).tokens]
        for prompt, runs in turn.values():
            path = self._match(prompt)
            known = sum(len(node.tokens) for node in path)
            new: list[torch.Tensor] = []
            while known + sum(run.shape[3] for run in new) < len(prompt):
                new.insert(0, runs.pop())
            self._add(_Node(prompt[known:], torch.cat(new, dim=3), path[-1] if path else self._root))
        return rest

    def _found(self, prompt: TokenIds) -> list[torch.Tensor]:
        """The KV of a prompt that is there, which is now the last used."""
        path = self._match(prompt)
        for node in reversed(path):
            self._by_use.move_to_end(node)
        return [node.kv for node in path]

    def trim(self) -> None:
        """Evict until the budget holds."""
        while self._by_use and self.num_bytes > self.budget_bytes:
            node, _ = self._by_use.popitem(last=False)
            assert node.parent is not None
            del node.parent.children[node.tokens[: self.block]]
            self.num_bytes -= node.kv.nbytes
            self.evictions += 1

    def _match(self, prompt: TokenIds) -> list[_Node]:
        """The nodes that hold the longest known beginning of a prompt; the last is cut where the prompt leaves it."""
        path: list[_Node] = []
        node, start = self._root, 0
        while child := node.children.get(prompt[start : start + self.block]):
            count = 0
            while count < len(child.tokens):
                block = child.tokens[count : count + self.block]
                if prompt[start + count : start + count + self.block] != block:
                    break
                count += len(block)
            if count < len(child.tokens):
                child = self._split(child, count)
            path.append(child)
            node, start = child, start + count
        return path

    def _split(self, node: _Node, count: int) -> _Node:
        """Cut the first `count` tokens off into a node of their own, which is returned."""
        assert node.parent is not None
        first = _Node(node.tokens[:count], node.kv[:, :, :, :count].clone(), node.parent)
        node.parent.children[node.tokens[: self.block]] = first
        node.tokens, node.kv, node.parent = node.tokens[count:], node.kv[:, :, :, count:].clone(), first
        first.children[node.tokens[: self.block]] = node
        self._by_use[first] = None
        return first

    def _add(self, node: _Node) -> _Node:
        assert node.parent is not None
        node.parent.children[node.tokens[: self.block]] = node
        self._by_use[node] = None
        self.num_bytes += node.kv.nbytes
        return node


class NoPrefixCache(PrefixCache):
    """Keeps nothing beyond a forward pass: the ablation."""

    def __init__(self, block: int = BLOCK) -> None:
        super().__init__(0, block)
