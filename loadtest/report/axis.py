"""A plot's axis: where a value lies on it, and at which round values it has ticks. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Axis:
    low: float
    high: float
    log: bool
    ticks: list[float]

    def place(self, value: float) -> float:
        """0 at the axis' beginning, 1 at its end; what is beyond lies at the nearer of them."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        return min(1.0, max(0.0, (value - low) / (high - low)))


def linear(values: list[float]) -> Axis:
    """From 0 to a round value that is not below any of `values`."""
    step = round_up(max([*values, 0.0]) / 8) if any(value > 0 for value in values) else 1.0
    num_steps = max(1, math.ceil(max([*values, 0.0]) / step - 1e-9))
    return Axis(0.0, num_steps * step, False, [i * step for i in range(num_steps + 1)])


def logarithmic(values: list[float]) -> Axis:
    """Between round values around those of `values` that are positive; the ticks are 1, 2 and 5 where there is room."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = round_down(min(positive)), round_up(max(positive))
    if low >= high:
        low, high = low / 2, high * 2
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    wide = high / low > 2000
    ticks = [factor * 10.0**decade for decade in decades for factor in ((1.0,) if wide else _STEPS[:3])]
    return Axis(low, high, True, [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001])


def round_up(value: float) -> float:
    """The least of ..., 0.5, 1, 2, 5, 10, ... that is not below `value`, which is positive."""
    decade = 10.0 ** math.floor(math.log10(value))
    return decade * next(step for step in _STEPS if step * decade >= value * (1 - 1e-9))


def round_down(value: float) -> float:
    """The greatest of them that is not above `value`."""
    decade = 10.0 ** math.floor(math.log10(value) + 1e-9)
    return decade * max(step for step in _STEPS[:3] if step * decade <= value * (1 + 1e-9))


def shown(value: float) -> str:
    """A value beside its tick or in a table."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
