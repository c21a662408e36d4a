"""Work that comes in pieces, from many at once: a little of it each time around the event loop, each in turn.

Refuses to know what the work is. `quire.app.protocol` gives it the input of connections that sent much.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

TURN_S = 0.001  # that the loop is held for, and for one piece more


class Turns:
    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._waiting: deque[Callable[[], bool]] = deque()
        self._is_due = False

    def enter(self, piece: Callable[[], bool]) -> None:
        """Call `piece` again and again, until it returns False."""
        self._waiting.append(piece)
        self._schedule()

    def _schedule(self) -> None:
        if self._waiting and not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._is_due = False
        until = self._clock() + TURN_S
        try:
            while self._waiting:
                piece = self._waiting.popleft()
                if piece():
                    self._waiting.append(piece)
                if self._clock() >= until:
                    break
        finally:  # one that fails does not hold up the others
            self._schedule()
