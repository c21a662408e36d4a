from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.engine.scheduling.block_pool import BlockPool


def test_blocks_are_taken_in_the_order_in_which_they_were_given_back() -> None:
    pool = BlockPool(3)
    taken = pool.take(3)
    for block in (taken[1], taken[2], taken[0]):
        pool.release([block], {block})
    assert pool.take(3) == [taken[1], taken[2], taken[0]]


def test_a_block_without_reusable_content_is_taken_before_cached_ones() -> None:
    pool = BlockPool(2)
    cached, plain = pool.take(2)
    pool.release([cached], {cached})
    pool.release([plain], ())
    assert pool.free_blocks() == [plain, cached]


def test_a_free_block_that_is_shared_again_leaves_the_free_list() -> None:
    pool = BlockPool(3)
    pool.share([1])
    assert pool.free_blocks() == [0, 2]
    assert pool.reference_counts == [0, 1, 0]


def test_a_block_is_free_only_when_its_last_holder_releases_it() -> None:
    pool = BlockPool(1)
    [block] = pool.take(1)
    pool.share([block])
    pool.release([block], {block})
    assert pool.num_free == 0
    pool.release([block], {block})
    assert pool.num_free == 1


def test_releasing_more_often_than_held_is_caught() -> None:
    pool = BlockPool(1)
    with pytest.raises(AssertionError, match="released more often"):
        pool.release([0], ())


@given(st.lists(st.tuples(st.sampled_from(["take", "share", "release"]), st.integers(0, 5), st.booleans())))
def test_free_and_held_blocks_always_make_up_the_pool(actions: list[tuple[str, int, bool]]) -> None:
    pool = BlockPool(6)
    holders = [0] * 6
    for action, block, reusable in actions:
        if action == "take" and pool.num_free:
            holders[pool.take(1)[0]] += 1
        elif action == "share":
            pool.share([block])
            holders[block] += 1
        elif action == "release" and holders[block]:
            pool.release([block], {block} if reusable else ())
            holders[block] -= 1
        assert pool.reference_counts == holders
        assert sorted(pool.free_blocks()) == [b for b in range(6) if holders[b] == 0]
