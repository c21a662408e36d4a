"""A call that is written as one JSON object, `{"name": ..., "arguments": {...}}`, read as it comes.

The arguments are passed on as the model wrote them, from the moment that the name is known.
"""

from __future__ import annotations

import json
from typing import Any

from quire.app.replies.json_text import JsonEnd

_ARGUMENTS = ("arguments", "parameters", "input")
_SPACE = " \t\r\n"


class JsonCall:
    """Feed it with `push` until `ended`; then `rest` is what follows the object.

    `name` is None until it is known. `failed`: this is no call, and nothing of it was passed on.
    """

    __slots__ = ("_end", "_expects", "_held", "_key", "_streams", "_value", "ended", "failed", "has_arguments",
                 "name", "rest")

    def __init__(self) -> None:
        self.name: str | None = None
        self.rest = ""
        self.ended = self.failed = self.has_arguments = False
        self._expects = "{"
        self._key = ""
        self._value: list[str] = []  # the text of a key, or of a value that is not passed on
        self._end: JsonEnd | None = None
        self._streams = False  # whether the value is passed on as it comes
        self._held: list[str] = []  # of the arguments, until the name is known

    def push(self, text: str) -> str:
        """What is new of the arguments' JSON."""
        passed_on: list[str] = []
        place = 0
        while place < len(text) and not self.ended:
            if self._end is not None:
                place = self._take(text, place, passed_on)
                continue
            character = text[place]
            if character in _SPACE:
                place += 1
            elif self._expects == "{" and character == "{":
                self._expects, place = "key", place + 1
            elif self._expects == "key" and character == '"':
                self._begin()
            elif self._expects == ":" and character == ":":
                self._expects, place = "value", place + 1
            elif self._expects == "value":
                # Arguments are an object; some models write that as a text. Of two the first counts, as of two names.
                self._streams = self._key in _ARGUMENTS and character == "{" and not self.has_arguments
                self._begin()
            elif self._expects in (",", "key") and character == "}":
                self._finish(place + 1, text, failed=self.name is None)
            elif self._expects == "," and character == ",":
                self._expects, place = "key", place + 1
            else:
                self._finish(place, text, failed=self.name is None)
        if self.name is not None and self._held:
            passed_on, self._held = self._held + passed_on, []
        return "".join(passed_on)

    def _begin(self) -> None:
        self._end, self._value = JsonEnd(), []

    def _take(self, text: str, place: int, passed_on: list[str]) -> int:
        """More of a key or value; the place behind it."""
        assert self._end is not None
        end = self._end.find(text, place)
        part = text[place:end]
        if self._streams and self._expects == "value":
            self.has_arguments = True
            (self._held if self.name is None else passed_on).append(part)
        else:
            self._value.append(part)
        if end is None:
            return len(text)
        self._end = None
        self._told()
        return end

    def _told(self) -> None:
        """A key or value is whole."""
        value = "".join(self._value)
        if self._expects == "key":
            self._key, self._expects = _text(value), ":"
            return
        self._expects = ","
        if self._key == "name":
            self.name = self.name or _text(value) or None
        elif self._key in _ARGUMENTS and not self.has_arguments:
            inner = _text(value)
            if isinstance(_decoded(inner), dict):
                self.has_arguments = True
                self._held.append(inner)

    def _finish(self, place: int, text: str, *, failed: bool) -> None:
        self.ended, self.failed, self.rest = True, failed, text[place:]


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _text(value: str) -> str:
    """What a JSON text says; empty for anything else."""
    decoded = _decoded(value)
    return decoded if isinstance(decoded, str) else ""
