"""Finds marker texts in a text that comes in pieces, and holds back what may turn out to be one.

The result does not depend on how the text is cut. Linear in the text: what is looked at again is shorter than a marker.
"""

from __future__ import annotations

import re


class Markers:
    __slots__ = ("_any", "_beginnings", "_longest")

    def __init__(self, *texts: str) -> None:
        """None begins with another one: which of the two is there could depend on the cut."""
        assert all(texts)
        assert not any(one != other and one.startswith(other) for one in texts for other in texts)
        self._any = re.compile("|".join(map(re.escape, texts)))
        self._beginnings = {text[:i] for text in texts for i in range(1, len(text))}
        self._longest = max(map(len, texts)) - 1

    def find(self, text: str, start: int = 0) -> tuple[int, int] | None:
        """Where the first one from `start` on begins and ends."""
        found = self._any.search(text, start)
        return None if found is None else found.span()

    def certain(self, text: str, start: int = 0) -> int:
        """The place in a `text` without a marker before which none can begin, whatever follows."""
        for length in range(min(self._longest, len(text) - start), 0, -1):
            if text[-length:] in self._beginnings:
                return len(text) - length
        return len(text)


class MarkerFinder:
    __slots__ = ("_held", "_markers")

    def __init__(self, *markers: str) -> None:
        self._markers = Markers(*markers)
        self._held = ""

    def push(self, text: str) -> tuple[str, str, str]:
        """The text before the first marker, the marker, and what follows it, which nobody has looked at; without a
        marker, the text that is certain to hold none, and two empty ones."""
        text = self._held + text
        if (found := self._markers.find(text)) is not None:
            self._held = ""
            begin, end = found
            return text[:begin], text[begin:end], text[end:]
        certain = self._markers.certain(text)
        self._held = text[certain:]
        return text[:certain], "", ""

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held
