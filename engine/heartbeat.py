"""The engine's sign of life: a byte into a pipe that its parent reads, about once a second while it loads or serves.

The byte says which of the two. A beat is given after a step or an idle poll, and within a long step that gets on, so
silence means that nothing of it happened.
"""

from __future__ import annotations

import contextlib
import os
import time

LOADING, SERVING = b"l", b"s"
# A serving engine that is silent for its time and this much longer should have been replaced by then: whoever sees it
# may take it that who should do so cannot.
OVERDUE_S = 10.0
MIN_INTERVAL_S = 0.5  # below the second in which the engine's loop calls, so that none of its calls falls through


class Heartbeat:
    def __init__(self, pipe: int | None) -> None:
        """`pipe` is the write end; None: nobody listens."""
        self._pipe = pipe
        self._next = 0.0
        self._last = b""
        if pipe is not None:
            os.set_blocking(pipe, False)

    def loading(self) -> None:
        """The load made progress. May be called as often as it does."""
        self._beat(LOADING)

    def serving(self) -> None:
        """A step was made or gets on, or there was none to make."""
        self._beat(SERVING)

    def _beat(self, kind: bytes) -> None:
        now = time.monotonic()
        if self._pipe is None or (now < self._next and kind == self._last):
            return
        self._next, self._last = now + MIN_INTERVAL_S, kind
        # A full pipe: the parent is behind, and has beats enough. A broken one: the parent is gone, and so are we.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._pipe, kind)
