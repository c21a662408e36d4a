"""A parser that is written as one pass over the text, from its beginning to its end, and waits wherever the text so far
does not tell how to go on.

Each reading method is a generator: `yield from` it. What it reads does not depend on how the text is cut.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Generator
from typing import TypeVar

from quire.app.replies.json_call import JsonCall
from quire.app.replies.json_text import JsonEnd
from quire.app.replies.markers import Markers
from quire.app.replies.pieces import Piece
from quire.app.replies.tools.parser import Schemas, ToolParser

T = TypeVar("T")
Step = Generator[None, None, T]
MAX_NAME = 128  # characters of a tool's name, as in a request, or of a parameter's
_PART = 4096  # characters that are looked at in one go: what follows a call within is copied
FENCE = "```"
_SPACES = re.compile(r"\s*")
WORD = re.compile(r"[\w.-]*")
KEY = re.compile(r"[^<>\"\n]*")  # of a parameter, in XML


class Script(ToolParser):
    def __init__(self, schemas: Schemas) -> None:
        super().__init__(schemas)
        self._text, self._at = "", 0  # what has come, and how far it was read; what is done with is dropped
        self._is_whole = False
        self._is_cut = False  # more was waited for, and did not come
        self._kept: list[str] | None = None
        self._found: list[Piece] = []
        self._steps = self.read()

    @abstractmethod
    def read(self) -> Step[None]:
        """Reads all of the text."""

    def push(self, text: str) -> list[Piece]:
        self._text += text
        return self._go_on()

    def flush(self) -> list[Piece]:
        self._is_whole = True
        return self._go_on() + self.last_spaces()

    def _go_on(self) -> list[Piece]:
        next(self._steps, None)
        found, self._found = self._found, []
        return found

    # What is given out

    def say(self, text: str) -> None:
        if text:
            self._found += self.content(text)

    def drop(self, text: str) -> None:
        """For text that is neither said nor called."""

    def call(self, name: str, id: str | None = None) -> None:
        self._found.append(self.begin(name, id))

    def argue(self, text: str) -> None:
        """More of the JSON of the last call's arguments."""
        if text:
            self._found.append(self.arguments(text))

    # What may be no call after all

    def keep(self, read: str = "") -> None:
        """From here on what is read is kept, after `read`, until `kept` or `forget`."""
        self._kept = [read]

    def kept(self) -> str:
        assert self._kept is not None
        kept, self._kept = "".join(self._kept), None
        return kept

    def forget(self) -> None:
        self._kept = None

    def no_call(self) -> None:
        """What was kept is said: it is no call. Of a reply that is cut off there, the beginning of another call is not.
        """
        kept = self.kept()
        if self.is_behind_call and self._is_cut:
            self.take(len(self._text))
        else:
            self.say(kept)

    # Reading

    def more(self) -> Step[bool]:
        """Waits for more of the text; False at its end."""
        if self._is_whole:
            self._is_cut = True
            return False
        self._text, self._at = self._text[self._at:], 0
        yield
        return True

    def take(self, end: int) -> str:
        """The text up to a place in what has come."""
        taken, self._at = self._text[self._at:end], end
        if self._kept is not None:
            self._kept.append(taken)
        return taken

    def give_back(self, num_characters: int) -> None:
        """The last of what was taken just now."""
        self._at -= num_characters
        if self._kept and num_characters:
            self._kept[-1] = self._kept[-1][:-num_characters]

    def until_call(self, markers: Markers) -> Step[str]:
        """As `until`; what is before is said. Of a reply that is cut off there, the beginning of another call is not.
        """
        def say_end(text: str) -> None:
            if not self.is_behind_call:
                self.say(text)

        return (yield from self.until(markers, self.say, say_end))

    def until(self, markers: Markers, into: Callable[[str], None],
              last: Callable[[str], None] | None = None) -> Step[str]:
        """Reads up to and with one of the markers, which it returns, or to the end of the text: then it returns none.
        What is before it goes `into`, as it comes; what may be half of one at the end of the text, to `last`."""
        while True:
            found = markers.find(self._text, self._at)
            if found is not None:
                into(self.take(found[0]))
                return self.take(found[1])
            end = markers.certain(self._text, self._at)
            if end > self._at:
                into(self.take(end))
            if not (yield from self.more()):
                if self._at < len(self._text):
                    (last or into)(self.take(len(self._text)))
                return ""

    def spaces(self) -> Step[str]:
        """Reads white space. Returns the first character behind it, which it leaves; empty at the end of the text."""
        while True:
            found = _SPACES.match(self._text, self._at)
            assert found is not None
            self.take(found.end())
            if self._at < len(self._text):
                return self._text[self._at]
            if not (yield from self.more()):
                return ""

    def starts(self, *texts: str) -> Step[str]:
        """Reads the one of `texts` that comes next, which it returns; empty: none does, and nothing was read. None of
        them begins with another one."""
        while True:
            for text in texts:
                if self._text.startswith(text, self._at):
                    return self.take(self._at + len(text))
            rest = self._text[self._at:self._at + max(map(len, texts))]
            if not any(text.startswith(rest) for text in texts) or not (yield from self.more()):
                return ""

    def next_of(self, *texts: str) -> Step[str]:
        """After a call: as `starts`, after white space, which belongs to what follows if that is none of `texts`. Half
        of one at the end of the text is nothing."""
        self.keep()
        yield from self.spaces()
        found = yield from self.starts(*texts)
        spaces, rest = self.kept(), self._text[self._at:self._at + max(map(len, texts))]
        if rest and not found and any(text.startswith(rest) for text in texts):
            self.drop(self.take(len(self._text)))
        elif not found:
            self.say(spaces)
        return found

    def word(self, characters: re.Pattern[str] = WORD) -> Step[str]:
        """Reads a name and returns it; empty, and nothing is read, where there is none, or one that is too long."""
        while True:
            found = characters.match(self._text, self._at, self._at + MAX_NAME + 1)
            assert found is not None
            if found.end() - self._at > MAX_NAME:
                return ""
            if found.end() < len(self._text) or not (yield from self.more()):
                return self.take(found.end())

    def fence(self) -> Step[None]:
        """Reads the first line of a Markdown block of JSON, if that comes next."""
        if (yield from self.starts(FENCE)):
            yield from self.starts("json")

    def json_call(self, *, is_marked: bool = True) -> Step[bool]:
        """Reads a call that is a JSON object and gives it out. False: it is none, and what was read is kept.

        Without a mark in front of it, an object with no more than a name is a call only if a tool has that name."""
        call, is_begun = JsonCall(), False
        while not call.ended:
            if self._at == len(self._text):
                if not (yield from self.more()):
                    return is_begun
                continue
            arguments = call.push(self.take(min(len(self._text), self._at + _PART)))
            self.give_back(len(call.rest))
            if not is_begun and call.name is not None and (is_marked or arguments or call.name in self.schemas):
                is_begun = True
                self.forget()
                self.call(call.name)
            self.argue(arguments)
        if is_begun and not call.has_arguments:
            self.argue("{}")
        return is_begun

    def json(self) -> Step[None]:
        """Reads the JSON value that comes next and gives it out as arguments."""
        end = JsonEnd()
        while True:
            place = end.find(self._text, self._at)
            self.argue(self.take(len(self._text) if place is None else place))
            if place is not None or not (yield from self.more()):
                return
