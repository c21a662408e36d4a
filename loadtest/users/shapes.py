"""How many users there are at a time. Pure; `locustfile` makes Locust's shape of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_SPIKE = 4  # in a spike, so many times as many as else


@dataclass(frozen=True)
class Plan:
    """`seconds` in all, `users` at most; or one number of users after the other, each for `step_s`."""

    shape: str
    users: int
    seconds: float
    steps: Sequence[int] = ()
    step_s: float = 30.0

    def at(self, second: float) -> int | None:
        """How many users there are to be; None when it is over."""
        if self.shape == "steps":
            place = int(second / self.step_s)
            return self.steps[place] if place < len(self.steps) else None
        return SHAPES[self.shape](self.users, second / self.seconds) if second < self.seconds else None


def _steady(users: int, part: float) -> int:
    return users


def _ramp(users: int, part: float) -> int:
    """From one on, evenly."""
    return 1 + int(part * users) if part * users < users - 1 else users


def _spike(users: int, part: float) -> int:
    """All of them in the middle fifth; before it and behind, a quarter."""
    return users if 0.4 <= part < 0.6 else max(1, users // _SPIKE)


# Of the time that has passed, a share from 0 to 1. Poisson arrivals and a soak are steady: what is sent, and how it is
# judged, differs.
SHAPES: dict[str, Callable[[int, float], int]] = {
    "steady": _steady, "ramp": _ramp, "spike": _spike, "poisson": _steady, "soak": _steady}
