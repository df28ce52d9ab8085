"""The ledger of KV blocks. No torch: it hands out numbers.

A block is used (some sequence holds it), cached (nobody holds it, its content is known by digest and may be found
again) or free. used + cached + free = total, always.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from opsin_server.engine.scheduling.sequence import Sequence


class BlockManager:
    def __init__(self, total: int, block_size: int, prefix_cache: bool = True) -> None:
        self.total, self.block_size, self.prefix_cache = total, block_size, prefix_cache
        self._holders = [0] * total
        self._digest: list[bytes | None] = [None] * total
        self._by_digest: dict[bytes, int] = {}
        self._free = deque(range(total))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently released first
        self.queries = self.hits = 0  # prompt tokens looked up in the prefix cache, and found

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def cached(self) -> int:
        return len(self._cached)

    @property
    def used(self) -> int:
        return self.total - self.free - self.cached

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def can_grow(self, sequence: Sequence, tokens: int) -> bool:
        return self.blocks_for(tokens) - len(sequence.blocks) <= self.free + self.cached

    def grow(self, sequence: Sequence, tokens: int) -> bool:
        """Blocks for the sequence's first `tokens` tokens; False, and nothing changed, when there are not enough."""
        if not self.can_grow(sequence, tokens):
            return False
        for _ in range(self.blocks_for(tokens) - len(sequence.blocks)):
            sequence.blocks.append(self._take())
        return True

    def adopt_prefix(self, sequence: Sequence) -> None:
        """Gives a fresh sequence the cached blocks of its longest known prefix. At least one token is left to compute,
        since a step must have a row to draw the next token from."""
        assert not sequence.blocks
        assert sequence.computed == 0
        if not (self.prefix_cache and sequence.takes_prefixes):
            return
        for index in range((len(sequence.tokens) - 1) // self.block_size):
            block = self._by_digest.get(sequence.digest(index, self.block_size))
            if block is None:
                break
            self._hold(block)
            sequence.blocks.append(block)
        sequence.computed = len(sequence.blocks) * self.block_size

    def count(self, sequence: Sequence) -> None:
        """A prompt that was admitted: once, however often it had to be looked up before there was room."""
        if self.prefix_cache and sequence.takes_prefixes:
            self.queries += sequence.prompt_length
            self.hits += sequence.cached_tokens

    def publish(self, sequence: Sequence, start: int, stop: int) -> None:
        """Blocks that became full as tokens start to stop - 1 were computed can now be found by others."""
        if not self.prefix_cache:
            return
        for index in range(start // self.block_size, stop // self.block_size):
            block = sequence.blocks[index]
            digest = sequence.digest(index, self.block_size)
            if self._digest[block] is None and digest not in self._by_digest:
                self._digest[block] = digest
                self._by_digest[digest] = block

    def release(self, sequence: Sequence) -> None:
        """Last block first, so that of a long prefix the end is forgotten first."""
        for block in reversed(sequence.blocks):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if self._digest[block] is None:
                self._free.append(block)
            else:
                self._cached[block] = None
        sequence.blocks.clear()
        sequence.computed = 0

    def _hold(self, block: int) -> None:
        if not self._holders[block]:
            del self._cached[block]
        self._holders[block] += 1

    def _take(self) -> int:
        if self._free:
            block = self._free.popleft()
        else:
            block, _ = self._cached.popitem(last=False)
            digest = self._digest[block]
            assert digest is not None
            del self._by_digest[digest]
            self._digest[block] = None
        self._holders[block] = 1
        return block
