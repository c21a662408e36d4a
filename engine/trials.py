"""Suspects, one at a time: requests of which an engine may have died go on alone, each when the one before is settled.

Here and not in the workers, because only the engine sees the suspects of all of them. Called by the core, which says
what a suspect is and what it means to let one go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Trials(Generic[T]):
    def __init__(self, let_go: Callable[[T], bool]) -> None:
        """`let_go` says False of one that ended while it was held."""
        self._let_go = let_go
        self._held: deque[T] = deque()
        self._on_trial: T | None = None

    @property
    def is_on(self) -> bool:
        return self._on_trial is not None

    def enter(self, suspect: T) -> None:
        self._held.append(suspect)
        self._next()

    def settled(self, suspect: T) -> None:
        """It produced a token or ended. Whoever is not on trial may be told of too."""
        if suspect is self._on_trial:
            self._on_trial = None
            self._next()

    def _next(self) -> None:
        while self._on_trial is None and self._held:
            suspect = self._held.popleft()
            if self._let_go(suspect):
                self._on_trial = suspect
