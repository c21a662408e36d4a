"""A load test's settings: environment variables, which Locust hands on to its worker processes as they are."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def refuse(name: str, value: str, wanted: str) -> NoReturn:
    """Ends the program: Locust would go on after an exception in its file."""
    print(f"{name} is {value!r}; it must be {wanted}", file=sys.stderr)
    sys.exit(2)


def text(name: str, default: str = "") -> str:
    return os.environ.get(name, "").strip() or default


def number(name: str, default: float) -> float:
    """A positive one."""
    given = text(name)
    if not given:
        return default
    try:
        value = float(given)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        refuse(name, given, "a number above 0")
    return value


def limit(name: str) -> float | None:
    """A number that is not negative; None where there is no limit."""
    given = text(name)
    if not given:
        return None
    try:
        value = float(given)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        refuse(name, given, "a number, 0 or more")
    return value


def count(name: str, default: int) -> int:
    value = number(name, default)
    if value != int(value):
        refuse(name, text(name), "a whole number above 0")
    return int(value)


def names(name: str) -> list[str]:
    """Joined by commas."""
    return [part.strip() for part in text(name).split(",") if part.strip()]


def counts(name: str) -> list[int]:
    """Whole numbers, apart by spaces or commas."""
    parts = text(name).replace(",", " ").split()
    if not all(part.isdecimal() and int(part) for part in parts):
        refuse(name, text(name), "whole numbers above 0, apart by spaces")
    return [int(part) for part in parts]
