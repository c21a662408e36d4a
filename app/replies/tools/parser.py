"""What the parsers of all models' calls have in common: calls are counted, and get ids; white space around them is no
content."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from quire.app.replies.json_call import JsonCall
from quire.app.replies.pieces import Arguments, Call, Content, Piece

Schemas = Mapping[str, Mapping[str, Any]]  # of tools' parameters, by the tools' names


class ToolParser(ABC):
    """Finds calls in one reply's text, which comes in pieces: what it gives out, joined, does not depend on how it is
    cut. Takes time in proportion to the text. What only looks like a call is content."""

    def __init__(self, schemas: Schemas) -> None:
        self.schemas = schemas
        self.num_calls = 0
        self._spaces: list[str] = []  # at the end of the content so far

    @abstractmethod
    def push(self, text: str) -> list[Piece]:
        """What this much more of the text completes."""

    @abstractmethod
    def flush(self) -> list[Piece]:
        """What was held back, at the end of the text."""

    def new_id(self) -> str:
        """Of a call; unlike all others."""
        return f"call_{secrets.token_hex(12)}"

    def content(self, text: str) -> list[Piece]:
        """`text` outside of calls. White space is given out when content follows it, unless a call came before."""
        said = text.rstrip()
        if not said:
            self._spaces.append(text)
            return []
        before, self._spaces = self._spaces, [text[len(said):]]
        return [Content("".join([*before, said]))]

    def last_spaces(self) -> list[Piece]:
        """At the end of the text: that of a reply without calls is given out as it was."""
        spaces, self._spaces = "".join(self._spaces), []
        return [Content(spaces)] if spaces and not self.num_calls else []

    def begin(self, name: str) -> Call:
        self._spaces.clear()
        self.num_calls += 1
        return Call(self.num_calls - 1, self.new_id(), name)

    def arguments(self, text: str) -> Arguments:
        """More of the JSON of the last call that began."""
        return Arguments(self.num_calls - 1, text)


class JsonCallReader:
    """One call of a parser's that is written as a JSON object."""

    def __init__(self, parser: ToolParser) -> None:
        self._parser = parser
        self._call = JsonCall()
        self.begun = False  # whether a call was given out
        self._text: list[str] = []  # until it is known to be a call

    @property
    def ended(self) -> bool:
        return self._call.ended

    @property
    def failed(self) -> bool:
        """It has ended, and was no call."""
        return self._call.failed

    @property
    def rest(self) -> str:
        """What follows the object, once it has ended."""
        return self._call.rest

    def push(self, text: str) -> list[Piece]:
        if not self.begun:
            self._text.append(text)
        arguments = self._call.push(text)
        pieces: list[Piece] = []
        if self._call.name is not None and not self.begun:
            self.begun = True
            self._text.clear()
            pieces.append(self._parser.begin(self._call.name))
        if arguments:
            pieces.append(self._parser.arguments(arguments))
        if self._call.ended and self.begun and not self._call.has_arguments:
            pieces.append(self._parser.arguments("{}"))
        return pieces

    def raw(self) -> str:
        """The text of what turned out to be no call, or has not got a name yet, without what follows it."""
        text = "".join(self._text)
        return text[:len(text) - len(self._call.rest)] if self._call.ended else text
