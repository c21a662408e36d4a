from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quire.engine.scheduling.prefix_index import PrefixIndex, extend_hashes

TOKENS = st.lists(st.integers(0, 2), max_size=12)


def hashes_of(token_ids: list[int], block_size: int = 2, salt: str = "") -> list[bytes]:
    hashes: list[bytes] = []
    extend_hashes(hashes, token_ids, len(token_ids) // block_size, block_size, salt)
    return hashes


@given(TOKENS, TOKENS, st.integers(1, 4))
def test_hashes_are_equal_exactly_as_far_as_the_prefixes_are(a: list[int], b: list[int], block_size: int) -> None:
    for i, (x, y) in enumerate(zip(hashes_of(a, block_size), hashes_of(b, block_size))):
        assert (x == y) == (a[:(i + 1) * block_size] == b[:(i + 1) * block_size])


@given(TOKENS, st.integers(0, 6))
def test_hashes_do_not_depend_on_the_pieces_they_were_computed_in(token_ids: list[int], first: int) -> None:
    hashes: list[bytes] = []
    num_full = len(token_ids) // 2
    extend_hashes(hashes, token_ids, min(first, num_full), 2, "")
    extend_hashes(hashes, token_ids, num_full, 2, "")
    assert hashes == hashes_of(token_ids)


def test_a_salt_isolates() -> None:
    everyone, one, other = (hashes_of([1, 2, 3, 4], salt=salt) for salt in ("", "one", "other"))
    assert not set(everyone) & set(one)
    assert not set(one) & set(other)


def test_a_match_ends_at_the_first_unknown_block() -> None:
    index = PrefixIndex(2)
    hashes = hashes_of([1, 2, 3, 4, 5, 6])
    index.register(hashes[0], [7, None])
    index.register(hashes[2], [9, None])
    index.register(hashes[1], [None, 8])
    assert index.num_known(0, hashes) == 1
    assert index.blocks(0, hashes[:1]) == [7]
    assert index.last_unknown(0, hashes, 1, 3) == 1
    assert index.last_unknown(0, hashes, 2, 3) is None


def test_the_first_block_of_a_prefix_stays_until_it_is_forgotten() -> None:
    index = PrefixIndex(1)
    (digest,) = hashes_of([1, 2])
    index.register(digest, [3])
    index.register(digest, [4])
    index.forget([4])
    assert index.blocks(0, [digest]) == [3]
    index.forget([3])
    assert index.num_known(0, [digest]) == 0
    assert len(index) == 0
