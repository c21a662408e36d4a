from __future__ import annotations

from quire.engine.scheduling.allocator import BlockAllocator
from quire.engine.scheduling.prefix_index import extend_hashes


def cached_sequence(allocator: BlockAllocator, token_ids: list[int]) -> tuple[list[int], list[bytes]]:
    """Blocks for the tokens, the full ones registered."""
    assert allocator.index is not None
    blocks = allocator.allocate(len(token_ids))
    assert blocks is not None
    hashes: list[bytes] = []
    extend_hashes(hashes, token_ids, len(token_ids) // allocator.block_size, allocator.block_size, "")
    for digest, block in zip(hashes, blocks):
        allocator.index.register(digest, block)
    return blocks, hashes


def test_the_end_of_a_freed_sequence_is_evicted_before_its_beginning() -> None:
    allocator = BlockAllocator(4, 2, enable_prefix_caching=True)
    blocks, hashes = cached_sequence(allocator, [1, 2, 3, 4, 5, 6, 7, 8])
    held = blocks.copy()
    allocator.free(blocks)
    assert blocks == []
    assert allocator.index is not None
    for num_left in (3, 2, 1, 0):
        assert allocator.take() == held[num_left]
        assert allocator.index.match(hashes) == held[:num_left]


def test_the_sequence_freed_first_is_evicted_first() -> None:
    allocator = BlockAllocator(4, 2, enable_prefix_caching=True)
    old, old_hashes = cached_sequence(allocator, [1, 2, 3, 4])
    new, new_hashes = cached_sequence(allocator, [5, 6, 7, 8])
    allocator.free(old)
    allocator.free(new)
    allocator.allocate(4)
    assert allocator.index is not None
    assert allocator.index.match(old_hashes) == []
    assert len(allocator.index.match(new_hashes)) == 2


def test_an_allocation_that_does_not_fit_changes_nothing() -> None:
    allocator = BlockAllocator(4, 2, enable_prefix_caching=True)
    blocks, _ = cached_sequence(allocator, [1, 2, 3, 4])
    shared = blocks.copy()
    allocator.free(blocks)
    before = allocator.pool.free_blocks()
    assert allocator.allocate(10, shared) is None  # 5 blocks in all
    assert allocator.allocate(8, shared, keep_free=1) is None  # the shared ones are free ones themselves
    assert allocator.pool.free_blocks() == before
    assert allocator.usage == 0.0
    assert allocator.allocate(8, shared) is not None
    assert allocator.usage == 1.0


def test_a_shared_block_is_never_taken_for_the_sequence_that_shares_it() -> None:
    allocator = BlockAllocator(2, 2, enable_prefix_caching=True)
    blocks, _ = cached_sequence(allocator, [1, 2])
    shared = blocks.copy()
    allocator.take()
    allocator.free(blocks)
    assert allocator.allocate(4, shared) is None
    assert allocator.allocate(2, shared) == shared


def test_blocks_shared_by_two_sequences_outlive_the_first() -> None:
    allocator = BlockAllocator(3, 2, enable_prefix_caching=False)
    first = allocator.allocate(4)
    assert first is not None
    second = allocator.allocate(4, first[:1])
    assert second is not None
    allocator.free(first)
    assert allocator.pool.reference_counts[second[0]] == 1
    assert allocator.pool.num_free == 1
