"""When a dead engine is started again, and when no more. Pure arithmetic on times; the launcher acts on it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass
class RestartPolicy:
    """At once after an engine that served for a while, since streams wait; later and later after ones that did not.

    Failures further apart than the window never add up, however many there are.
    """

    max_restarts: int = 4
    window_s: float = 300.0
    first_delay_s: float = 0.5
    max_delay_s: float = 5.0
    served_well_s: float = 5.0
    _failures: deque[float] = field(default_factory=deque)  # within the window
    _short_lives: int = 0  # in a row

    def failed(self, now: float, served_s: float = 0.0) -> float | None:
        """The delay after a failure at `now` of an engine that was ready for `served_s`; None: give up."""
        self._failures.append(now)
        while now - self._failures[0] > self.window_s:
            self._failures.popleft()
        if len(self._failures) > self.max_restarts:
            return None
        self._short_lives = 0 if served_s >= self.served_well_s else self._short_lives + 1
        if self._short_lives <= 1:
            return 0.0
        return min(self.max_delay_s, self.first_delay_s * 2 ** min(self._short_lives - 2, 16))
