"""Finds stop strings in a text that comes in pieces, and holds back what may turn out to be one.

The stop string that is complete first ends the text; of several that end at the same character, the longest. So the
result does not depend on how the text is cut into pieces. Linear in the text whatever the stop strings are
(Knuth, Morris and Pratt's automaton, one for each). Called by `quire.engine.frontend.generation`.
"""

from __future__ import annotations


class StopFinder:
    __slots__ = ("_fallbacks", "_held", "_include", "_matched", "_stops")

    def __init__(self, stops: list[str], include_stop_str_in_output: bool = False) -> None:
        assert stops
        self._stops = sorted(stops, key=len, reverse=True)  # the first that completes is the longest
        self._fallbacks = [_fallback_table(stop) for stop in self._stops]
        self._matched = [0] * len(stops)  # how many characters of each stop string the text ends with
        self._include = include_stop_str_in_output
        self._held = ""

    def push(self, delta: str) -> tuple[str, str | None]:
        """(the text that is certain now, the stop string that ended it or None); not to be called after an end."""
        for position, character in enumerate(delta):
            stop = self._step(character)
            if stop is not None:
                text = self._held + delta[:position + 1]
                self._held = ""
                return (text if self._include else text[:-len(stop)]), stop
        text = self._held + delta
        certain = len(text) - max(self._matched)
        self._held = text[certain:]
        return text[:certain], None

    def flush(self) -> str:
        """What was held back, when the text ends for another reason."""
        held, self._held = self._held, ""
        return held

    def _step(self, character: str) -> str | None:
        found = None
        for i, stop in enumerate(self._stops):
            matched, fallback = self._matched[i], self._fallbacks[i]
            while matched and stop[matched] != character:
                matched = fallback[matched - 1]
            if stop[matched] == character:
                matched += 1
            if matched == len(stop):
                found = found or stop
                matched = fallback[-1]
            self._matched[i] = matched
        return found


def _fallback_table(stop: str) -> list[int]:
    """For each prefix of `stop`, the length of its longest proper prefix that it also ends with."""
    table = [0] * len(stop)
    matched = 0
    for i in range(1, len(stop)):
        while matched and stop[i] != stop[matched]:
            matched = table[matched - 1]
        if stop[i] == stop[matched]:
            matched += 1
        table[i] = matched
    return table
