"""Custom ids by hash: exact in spite of collisions, and small."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.app.batch.ids import CustomIds, Duplicates
from quire.app.batch.line import BadLine, Task

# Surrogates stand alone in JSON as "\ud800".
ids = st.lists(st.none() | st.text(st.characters(), max_size=3), max_size=40)


def lines(custom_ids: list[str | None]) -> list[Task | BadLine]:
    return [BadLine(number, None, "") if custom_id is None else Task(number, custom_id, "/v1", b"{}")
            for number, custom_id in enumerate(custom_ids, 1)]


@given(ids)
def test_each_custom_id_leads_to_its_line_and_repeated_ones_are_named(custom_ids: list[str | None]) -> None:
    known = [custom_id for custom_id in custom_ids if custom_id is not None]
    repeated = {custom_id for custom_id in known if known.count(custom_id) > 1}
    if repeated:
        with pytest.raises(Duplicates) as caught:
            CustomIds(lambda: lines(custom_ids))
        assert len(caught.value.problems) == min(len(repeated), 10) + (len(repeated) > 10)
        return
    found = CustomIds(lambda: lines(custom_ids))
    assert (found.num_requests, found.last_line) == (len(custom_ids), len(custom_ids))
    assert [found.line_of(custom_id) for custom_id in known] == [custom_ids.index(custom_id) + 1 for custom_id in known]
    assert found.line_of("four") == 0


def test_ids_that_share_a_hash_are_told_apart_by_another_key() -> None:
    keys = iter(range(10_000))
    found = CustomIds(lambda: lines(["a", "b", "c"]), lambda: next(keys).to_bytes(2, "little"), digest_size=1)
    assert [found.line_of(custom_id) for custom_id in "abc"] == [1, 2, 3]


def test_a_hundred_thousand_lines_take_few_bytes_each() -> None:
    num_lines = 100_000

    def read() -> Iterator[Task | BadLine]:
        return (Task(number, f"a long custom id with the number {number}", "/v1", b"")
                for number in range(1, num_lines + 1))

    tracemalloc.start()
    found = CustomIds(read)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.line_of("a long custom id with the number 77777") == 77777
    assert kept < 20 * num_lines and peak < 60 * num_lines
