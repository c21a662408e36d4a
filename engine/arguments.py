"""Checks of one argument each: InvalidRequestError names it, what was given and what is wanted.

Refuses to know which arguments there are. Called by `sampling_params` and by the front end, whose callers may pass
anything: unlike a request over HTTP, a call from Python comes with no types. NumPy's numbers are taken and come out as
Python's own, which is all that crosses to other processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from operator import index
from typing import Any

from quire.engine.errors import InvalidRequestError

_MAX_SHOWN = 100  # characters


def shown(value: Any) -> str:
    """`value` as an error message quotes it."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def finite(name: str, value: Any) -> float:
    if type(value) not in (int, float):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise InvalidRequestError(f"{name} must be a number, got {shown(value)}.", name)
        value = index(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidRequestError(f"{name} must be a finite number, got {value}.", name)
    return value


def number(name: str, value: Any, low: float, high: float, *, low_excluded: bool = False) -> float:
    value = finite(name, value)
    if not low <= value <= high or (low_excluded and value == low):
        raise InvalidRequestError(f"{name} must be in {'(' if low_excluded else '['}{low}, {high}], "
                                  f"got {shown(value)}.", name)
    return value


def is_integer(value: Any) -> bool:
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))


def integer(name: str, value: Any, low: int, high: int) -> int:
    if not is_integer(value):
        raise InvalidRequestError(f"{name} must be an integer, got {shown(value)}.", name)
    value = index(value)
    if value < low:
        raise InvalidRequestError(f"{name} must be at least {low}, got {shown(value)}.", name)
    if value > high:
        raise InvalidRequestError(f"{name} must be at most {high}, got {shown(value)}.", name)
    return value


def flag(name: str, value: Any, wanted: str = "True or False") -> None:
    if not isinstance(value, int) or value not in (0, 1):
        raise InvalidRequestError(f"{name} must be {wanted}, got {shown(value)}.", name)


def listed(name: str, value: Any, wanted: str) -> list[Any]:
    """The members of `value`; none of None. What they are is for the caller to check."""
    if value is None:
        return []
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise InvalidRequestError(f"{name} must be {wanted}, got {shown(value)}.", name)
    return list(value)


def mapping(name: str, value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"{name} must be a dictionary, got {shown(value)}.", name)
    return value


def asks_for_nothing(value: Any, neutral: tuple[Any, ...]) -> bool:
    """Whether `value` is None or one of `neutral`, in type as well: an array compares with nothing."""
    return value is None or any(type(value) is type(one) and value == one for one in neutral)


def unsupported(name: str, value: Any, *neutral: Any) -> None:
    """For an argument of vLLM's that this version does not implement: refused, unless it asks for nothing."""
    if not asks_for_nothing(value, neutral):
        takes = " or ".join(repr(one) for one in neutral if one is not None)
        raise InvalidRequestError(f"{name} is not supported by this version; leave it out" +
                                  (f", or pass {takes}." if takes else "."), name)
