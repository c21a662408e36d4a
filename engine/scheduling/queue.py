"""The waiting queue: requests by (priority, arrival), so that a preempted one comes before all that came later.

Refuses to know why a request waits. Called by `scheduler` alone.
"""

from __future__ import annotations

import heapq

from engine.scheduling.request import Request


class WaitingQueue:
    """A heap. Removal from the middle only marks the entry; the marked are swept out once they are the majority."""

    __slots__ = ("_entries", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], list[Request]]] = []  # arrivals are unique: the lists never compare
        self._entries: dict[Request, list[Request]] = {}  # the list in the heap; emptied = removed

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, request: Request) -> None:
        assert request not in self._entries, request
        entry = [request]
        self._entries[request] = entry
        heapq.heappush(self._heap, (request.order, entry))

    def peek(self) -> Request:
        """The first in order. There must be one."""
        while not self._heap[0][1]:
            heapq.heappop(self._heap)
        return self._heap[0][1][0]

    def pop(self) -> Request:
        request = self.peek()
        heapq.heappop(self._heap)
        del self._entries[request]
        return request

    def remove(self, request: Request) -> None:
        self._entries.pop(request).clear()
        if len(self._heap) > 2 * len(self._entries) + 16:
            self._heap = [item for item in self._heap if item[1]]
            heapq.heapify(self._heap)
