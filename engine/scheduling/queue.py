"""The waiting queue: by priority, and within one priority fair between keys and first come, first served for each.

Refuses to know why a request waits. Called by `scheduler` alone.
"""

from __future__ import annotations

import heapq
import itertools

from quire.engine.scheduling.request import Order, Request


class _Entry:
    __slots__ = ("num_tokens", "request")

    def __init__(self, request: Request) -> None:
        self.request: Request | None = request  # None: removed
        self.num_tokens = request.num_total  # as it came: its own count has gone on when it is popped


class WaitingQueue:
    """A heap. Removal from the middle only marks the entry; the marked are swept out once they are the majority."""

    __slots__ = ("_arrivals", "_entries", "_heap", "_latest", "_levels", "num_tokens")

    def __init__(self) -> None:
        self._heap: list[tuple[Order, _Entry]] = []  # arrivals are unique: the entries never compare
        self._entries: dict[Request, _Entry] = {}
        self._levels: dict[int, _Level] = {}  # by priority, for as long as something waits there
        self._latest = 0.0  # no request that ever left the queue started later in virtual time
        self._arrivals = itertools.count()
        self.num_tokens = 0  # of all that wait

    def __len__(self) -> int:
        return len(self._entries)

    def enter(self, requests: list[Request]) -> None:
        """Gives the samples of one prompt their place in the order, for good, and queues the first of them."""
        first = requests[0]
        start = self._level(first.priority).reserve(first)
        for request in requests:
            request.order = (request.priority, start, next(self._arrivals))
        self.push(first)

    def push(self, request: Request) -> None:
        """Queues a request that has its place in the order."""
        assert request not in self._entries, request
        entry = self._entries[request] = _Entry(request)
        self._level(request.priority).num_waiting += 1
        self.num_tokens += entry.num_tokens
        heapq.heappush(self._heap, (request.order, entry))

    def peek(self) -> Request:
        """The first in order. There must be one."""
        while (first := self._heap[0][1].request) is None:
            heapq.heappop(self._heap)
        return first

    def pop(self) -> Request:
        request = self.peek()
        heapq.heappop(self._heap)
        level = self._levels[request.priority]
        level.time = max(level.time, request.order[1])
        self._latest = max(self._latest, level.time)
        self._left(request)
        return request

    def remove(self, request: Request) -> None:
        self._left(request).request = None
        if len(self._heap) > 2 * len(self._entries) + 16:
            self._heap = [item for item in self._heap if item[1].request is not None]
            heapq.heapify(self._heap)

    def charge(self, request: Request, num_tokens: int) -> None:
        """Its key's next requests come later by the tokens that this one produced: nobody knew them when it came."""
        level = self._levels.get(request.priority)
        if level is not None:
            level.charge(request, num_tokens)

    def _level(self, priority: int) -> _Level:
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = _Level(self._latest)
        return level

    def _left(self, request: Request) -> _Entry:
        entry = self._entries.pop(request)
        self.num_tokens -= entry.num_tokens
        level = self._levels[request.priority]
        level.num_waiting -= 1
        if not level.num_waiting:
            del self._levels[request.priority]
        return entry


class _Level:
    """Start-time fair queueing between the keys of one priority.

    In virtual time, a key's requests lie end to end, each as long as its tokens over the key's weight, and who starts
    first goes first. A request starts where its key's last one ends, but not before `time`, the start of the last one
    taken up: so a key that floods is ahead of a newcomer with one request at most, and idling earns nothing.
    """

    __slots__ = ("_ends", "num_waiting", "time")

    def __init__(self, time: float) -> None:
        self.time = time
        self.num_waiting = 0
        self._ends: dict[str, float] = {}  # key name -> where its last request ends

    def reserve(self, request: Request) -> float:
        """Where the request starts."""
        start = max(self.time, self._ends.get(request.key_name, 0.0))
        self._ends[request.key_name] = start + request.num_prompt_tokens / request.weight
        return start

    def charge(self, request: Request, num_tokens: int) -> None:
        end = self._ends.get(request.key_name, request.order[1])
        self._ends[request.key_name] = end + num_tokens / request.weight
