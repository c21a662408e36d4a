"""Who holds which KV block: reference counts, and the free blocks in the order in which they will be taken.

Refuses to know what is in a block (`prefix_index`) and what a request is (`request`). Only `allocator` changes it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterable


class BlockPool:
    """Blocks 0..num_blocks-1. A block is free exactly when its reference count is 0.

    A free block may still hold cached content, so the free list is an LRU: taken at the front, returned at the back,
    and a cached block that is wanted again leaves it from the middle, all in O(1).
    """

    __slots__ = ("_free", "num_blocks", "reference_counts")

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks >= 1, num_blocks
        self.num_blocks = num_blocks
        self.reference_counts = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def free_blocks(self) -> list[int]:
        """The free blocks, next to be taken first."""
        return list(self._free)

    def take(self, count: int) -> list[int]:
        """The least recently used free blocks, now held once. There must be so many."""
        free, counts = self._free, self.reference_counts
        blocks = [free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            counts[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """One more holder for each block, free (cached) ones included."""
        counts = self.reference_counts
        for block in blocks:
            if counts[block] == 0:
                del self._free[block]
            counts[block] += 1

    def release(self, blocks: Iterable[int], reusable: Container[int]) -> None:
        """One holder less of each. A block left without any is free: last in line if its content is `reusable`, else
        first."""
        free, counts = self._free, self.reference_counts
        for block in blocks:
            count = counts[block] = counts[block] - 1
            assert count >= 0, f"block {block} is released more often than held"
            if count == 0:
                free[block] = None
                if block not in reusable:
                    free.move_to_end(block, last=False)
