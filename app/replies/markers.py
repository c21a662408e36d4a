"""Finds marker texts in a text that comes in pieces, and holds back what may turn out to be one.

The result does not depend on how the text is cut. Linear in the text: what is looked at again is shorter than a marker.
"""

from __future__ import annotations

import re


class MarkerFinder:
    __slots__ = ("_any", "_beginnings", "_held", "_longest")

    def __init__(self, *markers: str) -> None:
        """No marker begins with another one: which of the two is there could depend on the cut."""
        assert all(markers)
        assert not any(one != other and one.startswith(other) for one in markers for other in markers)
        self._any = re.compile("|".join(map(re.escape, markers)))
        self._beginnings = {marker[:i] for marker in markers for i in range(1, len(marker))}
        self._longest = max(map(len, markers)) - 1
        self._held = ""

    def push(self, text: str) -> tuple[str, str, str]:
        """The text before the first marker, the marker, and what follows it, which nobody has looked at; without a
        marker, the text that is certain to hold none, and two empty ones."""
        text = self._held + text
        if (found := self._any.search(text)) is not None:
            self._held = ""
            return text[:found.start()], found[0], text[found.end():]
        certain = len(text)
        for length in range(min(self._longest, len(text)), 0, -1):
            if text[-length:] in self._beginnings:
                certain -= length
                break
        self._held = text[certain:]
        return text[:certain], "", ""

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held
