"""The door: what may queue. One place sees every worker's requests, so limits hold across all of them.

Called by the core before a request becomes known to the scheduler; says yes, or why not and when to come again.
"""

from __future__ import annotations

from engine.errors import OverloadedError


class Admission:
    """Bounds the samples that wait. `max_queued` None means no bound (offline use)."""

    def __init__(self, max_queued: int | None) -> None:
        self._max_queued = max_queued

    def check(self, num_waiting: int, num_new: int) -> None:
        """Raises OverloadedError where `num_new` more would exceed the bound."""
        if self._max_queued is not None and num_waiting + num_new > self._max_queued:
            raise OverloadedError(
                f"The queue is full: {num_waiting} samples wait and --max-queued-requests is {self._max_queued}. "
                "Try again later.", retry_after_s=1.0)
