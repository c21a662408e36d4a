"""The running requests, in the queue's order, and the rows of the ranks' request tables that they hold.

Refuses to know blocks (`allocator`) and who is to run (`scheduler`, the only caller).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from operator import attrgetter

from quire.engine.scheduling.request import Request
from quire.engine.scheduling.sharing import NOTHING_SHARED, SharedBeginning, largest_shared_beginning

_ORDER = attrgetter("order")


class Running:
    __slots__ = ("_shared", "free_rows", "is_changed", "requests")

    def __init__(self, num_rows: int) -> None:
        self.requests: list[Request] = []  # in order; this and the next are changed here alone
        self.free_rows = list(range(num_rows - 1, -1, -1))
        self.is_changed = False  # they or the blocks they share, since `shared_beginning` was asked
        self._shared = NOTHING_SHARED

    def __len__(self) -> int:
        return len(self.requests)

    def enter(self, request: Request) -> None:
        """Gives it a row, which must be free."""
        request.row = self.free_rows.pop()
        insort(self.requests, request, key=_ORDER)
        self.is_changed = True

    def leave(self, request: Request) -> None:
        del self.requests[bisect_left(self.requests, request.order, key=_ORDER)]
        self.free_rows.append(request.row)
        request.row = -1
        self.is_changed = True

    def shared_beginning(self, holders: Sequence[int], block_size: int) -> SharedBeginning:
        """`holders`: as in `sharing`. Looked for when something has changed, which is not at every step."""
        if self.is_changed:
            self.is_changed = False
            self._shared = largest_shared_beginning(self.requests, holders, block_size)
        return self._shared
