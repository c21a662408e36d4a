"""Plots as inline SVG: lines and histograms. Colours and fonts come from the page's style sheet, by class.

Each point and bar says its values in a <title>, which browsers show under the pointer.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from types import MappingProxyType

from quire.loadtest.report.axis import Axis, linear, logarithmic, shown

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 26, 14, 46
_INNER_WIDTH, _INNER_HEIGHT = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
_MOST_BARS = 48
_POINTS_MARKED = 60  # beyond it, only the line is drawn

Point = tuple[float, float]
Marks = Mapping[str, tuple[float, str]]  # vertical lines: name -> where, and the colour


@dataclass(frozen=True)
class Series:
    name: str
    points: list[Point]  # by x; where y is NaN, the line is broken
    color: str  # a class of the style sheet: c0, c1, c2
    dashed: bool = False


def line_plot(x_label: str, y_label: str, series: list[Series], *, log_y: bool = False, x_to: float = 0.0,
              marks: Marks = MappingProxyType({})) -> str:
    """`x_to`: where the x axis ends at the earliest."""
    values = [point for one in series for point in one.points if not math.isnan(point[1])]
    if not values:
        return '<p class="none">Nothing was measured.</p>'
    x = linear([x_to, *(value for value, _ in values)])
    y = (logarithmic if log_y else linear)([value for _, value in values])
    parts = _frame(x, y, x_label, y_label)
    for one in series:
        dashed = " dashed" if one.dashed else ""
        parts += [f'<polyline class="line {one.color}{dashed}" points="{_points(run, x, y)}"/>'
                  for run in _runs(one.points)]
        if len(one.points) <= _POINTS_MARKED and not one.dashed:
            parts += [f'<circle class="dot {one.color}" cx="{_x(x, px):.1f}" cy="{_y(y, py):.1f}" r="3"><title>'
                      f"{escape(one.name)}: {shown(py)} at {shown(px)}</title></circle>"
                      for px, py in one.points if not math.isnan(py)]
    parts += _marked(marks, x)
    told = [*((one.name, one.color) for one in series), *_told(marks)]
    return _legend(told) + _whole(parts, f"{y_label} by {x_label}")


def histogram(x_label: str, values: list[float], marks: Marks) -> str:
    """Of `values`, in bars of equal width on a logarithmic axis."""
    positive = sorted(value for value in values if value > 0)
    if not positive:
        return '<p class="none">Nothing was measured.</p>'
    x = logarithmic([positive[0], positive[-1]])
    num_bars = max(1, min(_MOST_BARS, round(4 * math.sqrt(len(positive)))))
    edges = [x.low * (x.high / x.low) ** (i / num_bars) for i in range(num_bars + 1)]
    places = [0, *(bisect.bisect_left(positive, edge) for edge in edges[1:-1]), len(positive)]
    shares = [100 * (after - before) / len(positive) for before, after in itertools.pairwise(places)]
    y = linear(shares)
    parts = _frame(x, y, x_label, "% of them")
    for low, high, share in zip(edges, edges[1:], shares):
        if share:
            left, right, top = _x(x, low), _x(x, high), _y(y, share)
            parts.append(f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{max(1.0, right - left - 1):.1f}" '
                         f'height="{_TOP + _INNER_HEIGHT - top:.1f}"><title>{shown(low)} to {shown(high)}: '
                         f"{shown(share)} %</title></rect>")
    parts += _marked(marks, x)
    return _legend(_told(marks)) + _whole(parts, f"histogram of {x_label}")


def _marked(marks: Marks, x: Axis) -> list[str]:
    return [f'<line class="line {color}" x1="{_x(x, value):.1f}" x2="{_x(x, value):.1f}" y1="{_TOP}" '
            f'y2="{_TOP + _INNER_HEIGHT}"><title>{escape(name)}: {shown(value)}</title></line>'
            for name, (value, color) in marks.items()]


def _told(marks: Marks) -> list[tuple[str, str]]:
    return [(f"{name} {shown(value)}", color) for name, (value, color) in marks.items()]


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.place(value) * _INNER_WIDTH


def _y(axis: Axis, value: float) -> float:
    return _TOP + (1 - axis.place(value)) * _INNER_HEIGHT


def _points(points: list[Point], x: Axis, y: Axis) -> str:
    return " ".join(f"{_x(x, px):.1f},{_y(y, py):.1f}" for px, py in points)


def _runs(points: list[Point]) -> list[list[Point]]:
    """The points between gaps."""
    runs: list[list[Point]] = [[]]
    for point in points:
        if math.isnan(point[1]):
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if run]


def _frame(x: Axis, y: Axis, x_label: str, y_label: str) -> list[str]:
    bottom, right = _TOP + _INNER_HEIGHT, _LEFT + _INNER_WIDTH
    parts = []
    for tick in y.ticks:
        at = _y(y, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>'
                     f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{shown(tick)}</text>')
    for tick in x.ticks:
        at = _x(x, tick)
        parts.append(f'<line class="tick" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
                     f'<text x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{shown(tick)}</text>')
    middle = _TOP + _INNER_HEIGHT / 2
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
                 f'<text class="label" x="{_LEFT + _INNER_WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
                 f"{escape(x_label)}</text>"
                 f'<text class="label" x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">'
                 f"{escape(y_label)}</text>")
    return parts


def _legend(names: list[tuple[str, str]]) -> str:
    items = "".join(f'<span class="{color}">{escape(name)}</span>' for name, color in names)
    return f'<div class="legend">{items}</div>' if names else ""


def _whole(parts: list[str], title: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
