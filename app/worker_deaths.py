"""When HTTP workers that end and are replaced are so many that the service ends instead. Counted in gunicorn's master.

A worker that cannot load the application ends gunicorn by itself; this is for all others: a signal while it starts,
a run directory that lost its room, an exit in the middle of serving.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

MAX_DEATHS = 10  # and one more for each worker, as something may end them all at once
WINDOW_S = 60.0


class WorkerDeaths:
    def __init__(self, num_workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = MAX_DEATHS + num_workers
        self._clock = clock
        self._times: deque[float] = deque()

    def too_many(self) -> bool:
        """To be called once for each that ended, whatever its exit code: none is meant to."""
        now = self._clock()
        self._times.append(now)
        while now - self._times[0] > WINDOW_S:
            self._times.popleft()
        return len(self._times) > self.most
