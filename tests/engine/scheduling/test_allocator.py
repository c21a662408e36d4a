from __future__ import annotations

from quire.engine.kv_groups import BlockNeed, Window
from quire.engine.scheduling.allocator import BlockAllocator
from quire.engine.scheduling.block_run import BlockRun
from quire.engine.scheduling.prefix_index import extend_hashes, root_of

BLOCK = 2


def allocator_of(num_blocks: int, *, windows: tuple[Window, ...] = (None,), step_tokens: int = 100,
                 caches: bool = True) -> BlockAllocator:
    return BlockAllocator(num_blocks, BlockNeed(windows, BLOCK, step_tokens), enable_prefix_caching=caches)


def cached_sequence(allocator: BlockAllocator, token_ids: list[int]) -> tuple[list[BlockRun], list[bytes]]:
    """Blocks for the tokens, the full ones registered."""
    assert allocator.index is not None
    runs = allocator.allocate(len(token_ids), allocator.nothing())
    assert runs is not None
    hashes: list[bytes] = []
    extend_hashes(hashes, token_ids, len(token_ids) // BLOCK, BLOCK, root_of(""))
    for digest, *blocks in zip(hashes, *(run.blocks for run in runs)):
        allocator.index.register(digest, blocks)
    return runs, hashes


def blocks_of(runs: list[BlockRun] | None) -> list[list[int]]:
    assert runs is not None
    return [run.blocks.copy() for run in runs]


def test_the_end_of_a_freed_sequence_is_evicted_before_its_beginning() -> None:
    allocator = allocator_of(4)
    runs, hashes = cached_sequence(allocator, [1, 2, 3, 4, 5, 6, 7, 8])
    [held] = blocks_of(runs)
    allocator.free(runs)
    assert runs == []
    for num_left in (3, 2, 1, 0):
        assert blocks_of(allocator.allocate(1, allocator.nothing())) == [[held[num_left]]]
        assert blocks_of(allocator.match(hashes)) == [held[:num_left]]


def test_the_sequence_freed_first_is_evicted_first() -> None:
    allocator = allocator_of(4)
    old, old_hashes = cached_sequence(allocator, [1, 2, 3, 4])
    new, new_hashes = cached_sequence(allocator, [5, 6, 7, 8])
    allocator.free(old)
    allocator.free(new)
    allocator.allocate(4, allocator.nothing())
    assert blocks_of(allocator.match(old_hashes)) == [[]]
    assert len(blocks_of(allocator.match(new_hashes))[0]) == 2


def test_an_allocation_that_does_not_fit_changes_nothing() -> None:
    allocator = allocator_of(4)
    runs, hashes = cached_sequence(allocator, [1, 2, 3, 4])
    allocator.free(runs)
    shared = allocator.match(hashes)
    before = allocator.pool.free_blocks()
    assert allocator.allocate(10, shared) is None  # 5 blocks in all
    assert allocator.allocate(8, shared, keep_free=1) is None  # the shared ones are free ones themselves
    assert allocator.pool.free_blocks() == before
    assert allocator.usage == 0.0
    assert allocator.allocate(8, shared) is not None
    assert allocator.usage == 1.0


def test_a_shared_block_is_never_taken_for_the_sequence_that_shares_it() -> None:
    allocator = allocator_of(2)
    runs, hashes = cached_sequence(allocator, [1, 2])
    allocator.allocate(1, allocator.nothing())
    shared = allocator.match(hashes)
    allocator.free(runs)
    assert allocator.allocate(4, shared) is None
    assert blocks_of(allocator.allocate(2, shared)) == blocks_of(shared)


def test_blocks_shared_by_two_sequences_outlive_the_first() -> None:
    allocator = allocator_of(3, caches=False)
    first = allocator.allocate(4, allocator.nothing())
    assert first is not None
    second = allocator.allocate(4, [first[0].cut(0, 1)])
    assert second is not None
    allocator.free(first)
    assert allocator.pool.reference_counts[second[0].at(0)] == 1
    assert allocator.pool.num_free == 1


def test_behind_a_window_as_many_blocks_are_held_as_a_step_can_see() -> None:
    allocator = allocator_of(100, windows=(None, 5), step_tokens=4)
    runs = allocator.allocate(40, allocator.nothing())
    assert runs is not None
    assert [run.end for run in runs] == [20, 5]  # 8 tokens, which may begin within a block
    allocator.leave_behind(runs, 12)  # which sees from 8 on
    gaps = allocator.gaps(runs, 40)
    assert gaps == ([1] * 4, [5, 6, 7, 8])
    assert allocator.fill(runs, gaps) == runs[1].blocks[-4:]
    assert [(run.first, run.end) for run in runs] == [(0, 20), (4, 9)]
    allocator.free(runs)
    assert allocator.usage == 0


def test_a_prefix_fits_where_a_window_needs_only_its_end() -> None:
    allocator = allocator_of(100, windows=(None, 3))
    runs, hashes = cached_sequence(allocator, list(range(20)))
    full, windowed = blocks_of(runs)
    found = allocator.match(hashes)
    assert [(run.first, run.blocks) for run in found] == [(0, full), (9, windowed[9:])]
    assert allocator.index is not None
    allocator.index.forget(windowed[8:])  # what longer prefixes need
    found = allocator.match(hashes)
    assert [(run.first, run.blocks) for run in found] == [(0, full[:8]), (7, windowed[7:8])]
    allocator.index.forget(windowed[:8])
    assert blocks_of(allocator.match(hashes)) == [[], []]
