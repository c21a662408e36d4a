"""Free rows, against a list of all of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quire.engine.scheduling.free_rows import FreeRows


@given(st.integers(0, 40), st.lists(st.tuples(st.booleans(), st.integers(1, 9), st.integers(0, 99))))
def test_what_is_found_is_the_first_that_is_free(num_rows: int, moves: list[tuple[bool, int, int]]) -> None:
    rows, is_free, taken = FreeRows(num_rows), [True] * num_rows, list[tuple[int, int]]()
    for takes, count, which in moves:
        if takes:
            expected = next((i for i in range(num_rows - count + 1) if all(is_free[i:i + count])), None)
            assert rows.find(count) == expected
            if expected is not None:
                first = min(expected + which, max(i for i in range(num_rows - count + 1) if all(is_free[i:i + count])))
                first = first if all(is_free[first:first + count]) else expected
                rows.take(first, count)
                taken.append((first, count))
                is_free[first:first + count] = [False] * count
        elif taken:
            first, count = taken.pop(which % len(taken))
            rows.give(first, count)
            is_free[first:first + count] = [True] * count
