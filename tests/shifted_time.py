"""An event loop on real sockets whose clock a test sets forward: timers of minutes are due at once, and none is due
because the machine is slow, as long as they are longer than a test takes."""

from __future__ import annotations

import asyncio

_TURNS = 12  # from bytes in a socket to all that comes of them: accepted, read, parsed, answered, closed


class ShiftedClock:
    """Of a loop that runs, and of what runs in it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._real = loop.time
        self._shift_s = 0.0
        loop.time = self._time  # type: ignore[method-assign]

    def _time(self) -> float:
        return self._real() + self._shift_s

    async def later(self, seconds: float) -> None:
        """Lets what was sent arrive, then so much time pass at once; what was due by then has been done."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        self._shift_s += seconds
        for _ in range(_TURNS):
            await asyncio.sleep(0)


class ShiftedLoop(asyncio.SelectorEventLoop):
    """Runs in one thread; `later` is called from another."""

    def __init__(self) -> None:
        super().__init__()
        self._clock = ShiftedClock(self)

    def later(self, seconds: float) -> None:
        asyncio.run_coroutine_threadsafe(self._clock.later(seconds), self).result(30)
