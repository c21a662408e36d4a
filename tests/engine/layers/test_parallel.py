"""Shares of ranks. Two real ranks over gloo are in tests/engine/models/test_split.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.engine.errors import ConfigError
from quire.engine.parallel import Parallel


@given(size=st.sampled_from([1, 2, 4, 8]), times=st.integers(1, 50))
def test_shares_cover_everything_once(size: int, times: int) -> None:
    shares = [Parallel(rank, size).share(times * size, "it") for rank in range(size)]
    assert [i for share in shares for i in range(share.start, share.stop)] == list(range(times * size))


@given(size=st.sampled_from([1, 2, 4, 8]), heads=st.sampled_from([1, 2, 4, 8, 16]))
def test_every_rank_has_the_kv_heads_of_its_query_heads(size: int, heads: int) -> None:
    num_heads = 4 * max(size, heads)
    group = num_heads // heads
    for rank in range(size):
        queries = Parallel(rank, size).share(num_heads, "heads")
        mine = Parallel(rank, size).share_kv_heads(heads)
        assert {q // group for q in range(queries.start, queries.stop)} == set(range(mine.start, mine.stop))


def test_what_does_not_divide_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"the vocabulary \(97\) does not divide by 2"):
        Parallel(0, 2).share(97, "the vocabulary")
    with pytest.raises(ConfigError, match=r"4 is not a multiple of the number of KV heads \(3\)"):
        Parallel(0, 4).share_kv_heads(3)
