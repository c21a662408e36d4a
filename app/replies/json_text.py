"""Where a JSON value ends in a text that comes in pieces, found without decoding it.

Lenient: what is no JSON ends where its brackets do.
"""

from __future__ import annotations

import json
import re

_IN_TEXT = re.compile(r'["\\]')
_OUTSIDE = re.compile(r'["{}\[\]]')
_AFTER_SCALAR = re.compile(r"[,}\]\s]")


def quoted(text: str) -> str:
    """As JSON; half a character, which UTF-8 does not have, as an escape."""
    return json.dumps(text, ensure_ascii=any("\ud800" <= character <= "\udfff" for character in text))


class JsonEnd:
    """Of one value, whose first character is the first that is pushed."""

    __slots__ = ("_depth", "_escaped", "_in_text", "_kind")

    def __init__(self) -> None:
        self._kind = ""
        self._depth = 0
        self._in_text = False
        self._escaped = False

    @property
    def is_in_text(self) -> bool:
        """Whether a string has begun and not ended."""
        return self._in_text

    def find(self, text: str, start: int = 0) -> int | None:
        """The place behind the value's last character in `text`, from `start` on; None: it goes on in the next piece. A
        number or a word ends before what follows it, which may be at 0."""
        place = start
        if not self._kind and place < len(text):
            first = text[place]
            self._kind = first if first in '{["' else "scalar"
        if self._kind == "scalar":
            found = _AFTER_SCALAR.search(text, place)
            return None if found is None else found.start()
        while place < len(text):
            if self._escaped:
                self._escaped = False
                place += 1
                continue
            found = (_IN_TEXT if self._in_text else _OUTSIDE).search(text, place)
            if found is None:
                return None
            place = found.end()
            character = found[0]
            if character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_text = not self._in_text
                if not self._in_text and not self._depth:
                    return place
            else:
                self._depth += 1 if character in "{[" else -1
                if self._depth <= 0:
                    return place
        return None
