"""KV blocks for sequences: the block pool and the prefix index, kept in agreement.

A sequence is its list of block ids, which its `Request` owns. Shared blocks are full and never written again: whoever
shares a prefix writes from the first block after it on. So the prefix cache needs no copy-on-write; only samples of one
prompt do, for its last block where that is partly full (`scheduler`, the only caller).
Refuses to know order, budgets and rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from quire.engine.scheduling.block_pool import BlockPool
from quire.engine.scheduling.prefix_index import PrefixIndex


class BlockAllocator:
    __slots__ = ("block_size", "index", "pool")

    def __init__(self, num_blocks: int, block_size: int, *, enable_prefix_caching: bool) -> None:
        self.pool = BlockPool(num_blocks)
        self.index = PrefixIndex() if enable_prefix_caching else None
        self.block_size = block_size

    @property
    def usage(self) -> float:
        """Share of the blocks that sequences hold, 0..1."""
        return 1.0 - self.pool.num_free / self.pool.num_blocks

    def allocate(self, num_tokens: int, shared: Sequence[int] = (), keep_free: int = 0) -> list[int] | None:
        """Blocks for `num_tokens`, the first ones being `shared`; None if fewer than `keep_free` would remain free."""
        num_fresh = -(-num_tokens // self.block_size) - len(shared)
        assert num_fresh >= 0, (num_tokens, len(shared))
        counts = self.pool.reference_counts
        num_revived = sum(1 for block in shared if counts[block] == 0)
        if self.pool.num_free - num_revived - num_fresh < keep_free:
            return None
        self.pool.share(shared)  # before any is taken, so that none of them is
        return [*shared, *(self.take() for _ in range(num_fresh))]

    def take(self) -> int:
        """One fresh block. There must be a free one."""
        block = self.pool.take()
        if self.index is not None:
            self.index.forget(block)
        return block

    def free(self, blocks: list[int]) -> None:
        """Gives a whole sequence back and empties the list. The end goes first: it is of use to fewer prompts."""
        index = self.index
        for block in reversed(blocks):
            self.pool.release(block, reusable=index is not None and block in index)
        blocks.clear()
