"""What was freed goes back to the system. Called by the assembly after loading and, on a CPU, by the model runner."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

EVERY_S = 30.0


def return_freed_memory() -> None:
    """glibc keeps what is freed for later, tens of megabytes after loading; other C libraries have no such call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class FreedMemory:
    """Of steps on a CPU. Each has tensors of other sizes than the one before, and the heap tears: left to itself an
    engine with SmolLM2 grew by 340 MiB in half an hour. To give back takes some milliseconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = clock() + EVERY_S

    def give_back_at_times(self) -> None:
        """Does nothing but every EVERY_S."""
        if (now := self._clock()) >= self._next:
            self._next = now + EVERY_S
            return_freed_memory()
