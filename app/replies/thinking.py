"""Parts what a model thinks from what it says: `<think>...</think>`, or other tags, at the beginning of a reply."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from quire.app.replies.markers import MarkerFinder


@dataclass(frozen=True, slots=True)
class ThinkTags:
    start: str
    end: str

    def are_open(self, prompt: str) -> bool:
        """Whether the reply to `prompt` begins within them: the template, or the beginning of an answer that is to be
        gone on with, opened them."""
        return prompt.rfind(self.start) > prompt.rfind(self.end)


AUTO, NONE = "auto", "none"
# By the name that --reasoning-parser takes.
THINK_TAGS = {"think": ThinkTags("<think>", "</think>"), "mistral": ThinkTags("[THINK]", "[/THINK]")}


class _Where(Enum):
    BEFORE = auto()  # nothing but white space so far
    INSIDE = auto()
    AFTER = auto()


class Thinking:
    """`push` and `flush` give (text, whether it is thought). Line breaks around tags belong to neither."""

    def __init__(self, tags: ThinkTags, *, is_open: bool, ends: tuple[str, ...] = ()) -> None:
        """`is_open`: the prompt opened the tags. `ends`: texts that end it too, and belong to what follows."""
        self._tags = tags
        self._where = _Where.INSIDE if is_open else _Where.BEFORE
        self._inside = MarkerFinder(tags.start, tags.end, *ends)
        self._seen = ""  # BEFORE: all of it
        self._breaks: list[str] = []  # INSIDE: line breaks, which are dropped before the end
        self._begun = False  # whether anything of this part was given out

    @property
    def is_inside(self) -> bool:
        return self._where is _Where.INSIDE

    def push(self, text: str) -> Iterator[tuple[str, bool]]:
        while text:
            if self._where is _Where.AFTER:
                text = text if self._begun else text.lstrip("\n")
                if text:
                    self._begun = True
                    yield text, False
                return
            if self._where is _Where.INSIDE:
                before, marker, text = self._inside.push(text)
                yield from self._thought(before)
                if marker and marker != self._tags.start:
                    self._leave()
                    text = text if marker == self._tags.end else marker + text
                continue
            self._seen += text
            text = ""
            begun = self._seen.lstrip()
            if begun.startswith(self._tags.start):
                self._where, text = _Where.INSIDE, begun.removeprefix(self._tags.start)
            elif not self._tags.start.startswith(begun):
                self._where, self._begun, text = _Where.AFTER, True, self._seen

    def flush(self) -> Iterator[tuple[str, bool]]:
        """What was held back, at the end of the reply."""
        if self._where is _Where.INSIDE:
            yield from self._thought(self._inside.flush())
        elif self._where is _Where.BEFORE and self._seen:
            yield self._seen, False

    def _thought(self, text: str) -> Iterator[tuple[str, bool]]:
        said = text.rstrip("\n")
        breaks = text[len(said):]
        if said:
            said = "".join([*self._breaks, said])
            self._breaks.clear()
            yield said if self._begun else said.lstrip("\n"), True
            self._begun = True
        self._breaks.append(breaks)

    def _leave(self) -> None:
        self._where, self._begun = _Where.AFTER, False
