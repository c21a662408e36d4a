"""Refuses by name what llguidance's own limits (`limits`) do not hold: work that it does in one go, between two looks
at them. A form that got past would hold up the whole engine, for minutes or until its memory is full.

Measured with llguidance 1.9: 24 patterns of a few characters that one text must match at once take 22 s and 2 GB, each
further one twice as much; `multipleOf: 999983` takes more than 8 s.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

_MOST_PATTERNS = 12  # that may meet in one text
_MOST_REMAINDERS = 20_000  # states of a number's digits, which `multipleOf` counts: 0.1 s
_MOST_GBNF_CHARACTERS = 32 * 2**10  # 0.5 s: the time to translate it grows with the square
_IN_PLACE = ("$ref", "$dynamicRef", "anyOf", "oneOf")
# Texts, comments and regular expressions of a Lark grammar; what looks like one and has no end stays.
_QUOTED = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/(?:\\.|[^/\\\n])+/')


def check_lark(lark: str) -> None:
    """Raises ValueError for an intersection, or for a schema within that is too costly."""
    if "&" in _QUOTED.sub("", lark):
        raise ValueError("intersections (&) of terminals are not supported")
    for match in re.finditer("%json", lark):
        try:
            schema, _ = json.JSONDecoder().raw_decode(lark, _after_spaces(lark, match.end()))
        except (ValueError, RecursionError):
            continue  # in a text or a comment, or wrong, which llguidance says
        check_schema(schema)


def check_gbnf(grammar: str) -> None:
    """Raises ValueError for one that is too long to be translated."""
    if "::=" in grammar and len(grammar) > _MOST_GBNF_CHARACTERS:
        raise ValueError(f"a grammar in GBNF may have at most {_MOST_GBNF_CHARACTERS} characters, got {len(grammar)}")


def check_schema(schema: Any) -> None:
    """Raises ValueError for too many patterns that may have to hold at once, and for large multiples."""
    patterns, num_joints = set[str](), 0
    multiples = set[int]()
    for part in _objects(schema):
        own = {value for name in ("pattern", "format") if isinstance(value := part.get(name), str)}
        patterns |= own
        all_of = part.get("allOf")
        num_parts = len(all_of) if isinstance(all_of, list) else 0
        num_parts += len(own) + any(name in part for name in ("properties", "patternProperties"))
        num_parts += sum(name in part for name in _IN_PLACE)
        num_joints += max(0, num_parts - 1)
        multiple = part.get("multipleOf")
        if isinstance(multiple, (int, float)) and math.isfinite(multiple) and multiple:
            multiples.add(_digits(multiple))
    if min(len(patterns), num_joints + 1) > _MOST_PATTERNS:
        raise ValueError(f"{len(patterns)} patterns and formats in a schema that combines parts {num_joints} times are "
                         f"too costly; up to {_MOST_PATTERNS} may be combined")
    if multiples and len(multiples) * math.lcm(*multiples) > _MOST_REMAINDERS:
        raise ValueError("multipleOf is too costly: the number of different values times their least common multiple, "
                         f"without zeros at the end, may be at most {_MOST_REMAINDERS}")


def _objects(schema: Any) -> Iterator[dict[str, Any]]:
    left = [schema]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            yield part
            left += part.values()
        elif isinstance(part, list):
            left += part


def _digits(number: float) -> int:
    """Of 0.25 and of 2500: 25."""
    return int("".join(map(str, Decimal(repr(number)).as_tuple().digits)).rstrip("0") or "0")


def _after_spaces(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start
