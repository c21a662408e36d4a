from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from quire.engine.scheduling.prefix_index import PrefixIndex, extend_hashes, root_of

TOKENS = st.lists(st.integers(0, 2), max_size=12)


class Image(NamedTuple):
    first: int
    end: int
    digest: bytes


@st.composite
def spans(draw: st.DrawFn) -> list[Image]:
    """Behind one another, in 12 tokens."""
    ends = sorted(draw(st.sets(st.integers(0, 12), max_size=6)))
    return [Image(first, end, draw(st.sampled_from([b"a", b"b", b"ab"])))
            for first, end in zip(ends[::2], ends[1::2])]


def hashes_of(token_ids: list[int], block_size: int = 2, salt: str = "", spans: Sequence[Image] = ()) -> list[bytes]:
    hashes: list[bytes] = []
    extend_hashes(hashes, token_ids, len(token_ids) // block_size, block_size, root_of(salt), spans)
    return hashes


@given(TOKENS, TOKENS, st.integers(1, 4))
def test_hashes_are_equal_exactly_as_far_as_the_prefixes_are(a: list[int], b: list[int], block_size: int) -> None:
    for i, (x, y) in enumerate(zip(hashes_of(a, block_size), hashes_of(b, block_size))):
        assert (x == y) == (a[:(i + 1) * block_size] == b[:(i + 1) * block_size])


@given(TOKENS, st.integers(0, 6))
def test_hashes_do_not_depend_on_the_pieces_they_were_computed_in(token_ids: list[int], first: int) -> None:
    hashes: list[bytes] = []
    num_full = len(token_ids) // 2
    extend_hashes(hashes, token_ids, min(first, num_full), 2, root_of(""))
    extend_hashes(hashes, token_ids, num_full, 2, root_of(""))
    assert hashes == hashes_of(token_ids)


@given(spans(), spans(), st.integers(1, 5))
def test_with_images_they_are_equal_exactly_as_far_as_the_same_images_lie_at_the_same_places(
        a: list[Image], b: list[Image], block_size: int) -> None:
    tokens = [7] * 12
    for i, (x, y) in enumerate(zip(hashes_of(tokens, block_size, spans=a), hashes_of(tokens, block_size, spans=b))):
        end = (i + 1) * block_size
        assert (x == y) == (_until(a, end) == _until(b, end))


def _until(spans: list[Image], end: int) -> list[Image]:
    """Those that begin before."""
    return [span for span in spans if span.first < end]


@given(spans(), st.integers(0, 6))
def test_with_images_they_do_not_depend_on_the_pieces_either(images: list[Image], first: int) -> None:
    hashes: list[bytes] = []
    for num_full in (first, 6):
        extend_hashes(hashes, [7] * 12, num_full, 2, root_of(""), images)
    assert hashes == hashes_of([7] * 12, spans=images)


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
