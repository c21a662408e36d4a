"""Which of a row of numbered places are free: stretches between those that are taken. Pure integers.

Called by `feature_cache`, in which thousands of small images may lie when a large one comes: nothing here looks at what
is taken.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right


class FreeRows:
    """Rows 0 to before `num_rows`, all of them free at first."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, num_rows: int) -> None:
        # Of each stretch its first row and the row behind its last, in order; no two of them touch.
        self._starts = [0] if num_rows else []
        self._ends = [num_rows] if num_rows else []

    def find(self, num_rows: int) -> int | None:
        """The first of the first so many rows that are free and side by side."""
        return next((start for start, end in zip(self._starts, self._ends) if end - start >= num_rows), None)

    def take(self, first: int, num_rows: int) -> None:
        """They must be free."""
        place = bisect_right(self._starts, first) - 1
        start, end, taken_end = self._starts[place], self._ends[place], first + num_rows
        assert place >= 0 and start <= first and taken_end <= end, (first, num_rows)
        left = [(low, high) for low, high in ((start, first), (taken_end, end)) if low < high]
        self._starts[place:place + 1] = [low for low, _ in left]
        self._ends[place:place + 1] = [high for _, high in left]

    def give(self, first: int, num_rows: int) -> None:
        """They must be taken."""
        start, end = first, first + num_rows
        low, high = bisect_left(self._ends, first), bisect_right(self._starts, end)  # the stretches that touch them
        if low < high:
            start, end = min(start, self._starts[low]), max(end, self._ends[high - 1])
        assert end - start == num_rows + sum(self._ends[low:high]) - sum(self._starts[low:high]), (first, num_rows)
        self._starts[low:high], self._ends[low:high] = [start], [end]
