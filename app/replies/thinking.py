"""Parts what a model thinks from what it says: `<think>...</think>`, or other tags, at the beginning of a reply."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from quire.app.replies.markers import MarkerFinder

# What templates write between turns. Where it follows an opened tag, a message of an earlier turn spelled the tag.
_TURN = re.compile(r"<\|[^<>]*\|>|<｜[^<>]*｜>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>|<\|?turn\|?>")


class Where(Enum):
    """Where in a reply something is."""

    BEFORE = auto()  # nothing but white space so far
    INSIDE = auto()  # of the thinking
    AFTER = auto()


@dataclass(frozen=True, slots=True)
class ThinkTags:
    start: str
    end: str

    def where(self, prompt: str) -> Where:
        """Where the reply to `prompt` begins: the template, or the beginning of an answer that is to be gone on with,
        may have opened the tags, or opened and closed them."""
        text = prompt.rstrip()
        if text.endswith(self.end):
            return Where.AFTER
        opened = text.rfind(self.start)
        if opened < 0 or text.rfind(self.end) > opened or _TURN.search(text, opened + len(self.start)):
            return Where.BEFORE
        return Where.INSIDE


AUTO, NONE = "auto", "none"
# In the order in which templates are searched for their ends.
THINK_TAGS = {
    "think": ThinkTags("<think>", "</think>"),
    "mistral": ThinkTags("[THINK]", "[/THINK]"),
    "seed_oss": ThinkTags("<seed:think>", "</seed:think>"),
    "gemma4": ThinkTags("<|channel>thought", "<channel|>"),
    "granite": ThinkTags("Here is my thought process:", "Here is my response:"),
}
# Other names of vLLM's for --reasoning-parser.
_SAME = {"think": ("deepseek_r1", "deepseek_v3", "deepseek_v4", "ernie45", "glm45", "holo2", "kimi_k2", "minimax_m2",
                   "nemotron_v3", "olmo3", "qwen3", "step3")}
REASONING_PARSERS = {**THINK_TAGS, **{name: THINK_TAGS[kind] for kind, names in _SAME.items() for name in names}}


class Thinking:
    """`push` and `flush` give (text, whether it is thought). Line breaks around tags belong to neither."""

    def __init__(self, tags: ThinkTags, begins: Where = Where.BEFORE, ends: tuple[str, ...] = ()) -> None:
        """`begins`: where the reply begins. `ends`: texts that end the thinking too, and belong to what follows."""
        self._tags = tags
        self._where = begins
        self._inside = MarkerFinder(tags.start, tags.end, *ends)
        self._seen = ""  # BEFORE, and AFTER until something was given out: all of it
        self._breaks: list[str] = []  # INSIDE: line breaks, which are dropped before the end
        self._begun = False  # whether anything of this part was given out

    @property
    def is_inside(self) -> bool:
        return self._where is Where.INSIDE

    def push(self, text: str) -> Iterator[tuple[str, bool]]:
        while text:
            if self._where is Where.AFTER:
                text = text if self._begun else self._first_said(text)
                if text:
                    self._begun = True
                    yield text, False
                return
            if self._where is Where.INSIDE:
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
                self._where, text = Where.INSIDE, begun.removeprefix(self._tags.start)
            elif not self._tags.start.startswith(begun):
                self._where, self._begun, text = Where.AFTER, True, self._seen

    def flush(self) -> Iterator[tuple[str, bool]]:
        """What was held back, at the end of the reply."""
        if self._where is Where.INSIDE:
            yield from self._thought(self._inside.flush())
        elif not self._begun and self._seen:
            yield self._seen, False

    def _first_said(self, text: str) -> str:
        """Without what separates it from the thinking: line breaks, and an end that a model writes once more."""
        self._seen = (self._seen + text).lstrip("\n")
        while self._seen.startswith(self._tags.end):
            self._seen = self._seen.removeprefix(self._tags.end).lstrip("\n")
        return "" if self._tags.end.startswith(self._seen) else self._seen

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
        self._where, self._begun, self._seen = Where.AFTER, False, ""
