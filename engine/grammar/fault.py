"""Which part of a form is at fault where the whole cannot be followed: found by trying the parts.

llguidance itself names lines of a grammar that no caller has seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from quire.engine.grammar.json_options import LISTS, MAPS, SINGLE
from quire.engine.grammar.structural_tags import format_of
from quire.engine.structured_outputs import StructuredOutputsParams

_MOST_PLACES = 600  # that are tried: more than a request may have tools
_LONGEST_SEARCH_S = 0.2
_MOST_SHOWN = 200  # characters of the texts in front of a part
_DEFINED = ("$defs", "definitions", "$schema")

Why = Callable[[StructuredOutputsParams], str | None]  # a form cannot be followed


def place_of(wanted: StructuredOutputsParams, why: str, why_not: Why) -> str:
    """The innermost part of `wanted` that cannot be followed for the same reason, as the end of a sentence; empty: none
    is smaller than the whole."""
    return _Search(why, why_not).place_of(wanted)


class _Search:
    def __init__(self, why: str, why_not: Why) -> None:
        self._why, self._why_not = why, why_not
        self._places_left, self._ends_at = _MOST_PLACES, time.monotonic() + _LONGEST_SEARCH_S

    def place_of(self, wanted: StructuredOutputsParams) -> str:
        if wanted.json is not None:
            return f" (at {self._in_schema(wanted.json)} of the schema)"
        if not isinstance(wanted.structural_tag, dict):
            return ""
        part, before = self._in_tags(format_of(wanted.structural_tag))
        behind = f" behind {before[-_MOST_SHOWN:]!r}" if before else ""
        if part.get("type") != "json_schema":
            return behind and f" ({behind.strip()})"
        return f" (at {self._in_schema(part.get('json_schema'))} of the schema{behind})"

    def _is_at_fault(self, **form: Any) -> bool:
        self._places_left -= 1
        return (self._places_left >= 0 and time.monotonic() < self._ends_at
                and self._why_not(StructuredOutputsParams(**form)) == self._why)

    def _in_schema(self, root: Any) -> str:
        """As a JSON pointer."""
        place, schema = "#", root
        shared = {name: root[name] for name in _DEFINED if name in root} if isinstance(root, dict) else {}
        while isinstance(schema, dict):
            found = next(((pointer, part) for pointer, part in _parts(schema)
                          if isinstance(part, dict) and self._is_at_fault(json={**shared, **part})), None)
            if found is None:
                break
            place, schema = place + found[0], found[1]
        return place

    def _in_tags(self, form: Any) -> tuple[dict[str, Any], str]:
        """Of a tree of formats, with the texts that tags begin with on the way there."""
        before = ""
        while True:
            found = next((part for part in _formats(form) if self._is_at_fault(structural_tag={"format": part})), None)
            if found is None:
                return form, before
            form = found
            before += form.get("begin", "") if form.get("type") == "tag" else ""


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas within a schema, but for those that it defines for others, and where they are."""
    for name, value in schema.items():
        if name in MAPS and isinstance(value, dict):
            yield from ((f"/{name}/{_escaped(key)}", part) for key, part in value.items())
        elif name in LISTS and isinstance(value, list):
            yield from ((f"/{name}/{i}", part) for i, part in enumerate(value))
        elif name in SINGLE and isinstance(value, dict):
            yield f"/{name}", value


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _formats(form: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The formats within one."""
    for name in ("elements", "tags"):
        for part in form.get(name, ()):
            # A tag may leave out its type where only tags may be.
            yield part if name == "elements" else {"type": "tag", **part}
    if form.get("type") == "tag":
        yield form["content"]
