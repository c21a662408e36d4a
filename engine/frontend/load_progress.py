"""How far a load is, and how long its phase may still take. Fed with what the engine says, by `EngineClient`."""

from __future__ import annotations

LEAST_GAIN = 0.02  # less says nothing of a phase's speed


class LoadProgress:
    def __init__(self) -> None:
        self.phase = "starting"
        self.fraction = 0.0
        self._began: tuple[float, float] | None = None  # when this phase was first heard of, and its fraction then
        self._heard = 0.0

    def update(self, phase: str, fraction: float, now: float) -> None:
        if self._began is None or phase != self.phase or fraction < self.fraction:
            self._began = (now, fraction)
        self.phase, self.fraction, self._heard = phase, fraction, now

    def eta_s(self, now: float) -> float | None:
        """Seconds until this phase is over at its own speed so far; None where that is not known."""
        if self._began is None:
            return None
        began, first = self._began
        gained, took_s = self.fraction - first, self._heard - began
        if gained < LEAST_GAIN or took_s <= 0:
            return None
        return max(0.0, (1 - self.fraction) * took_s / gained - (now - self._heard))
