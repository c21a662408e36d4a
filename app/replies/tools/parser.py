"""What the parsers of all models' calls have in common: calls are counted, and get ids; white space around them is no
content."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from quire.app.replies.pieces import Arguments, Call, Content, Piece

Form = dict[str, Any]  # a part of a grammar, as in `structural_tag`
Schemas = Mapping[str, Mapping[str, Any]]  # of tools' parameters, by the tools' names


class ToolParser(ABC):
    """Finds calls in one reply's text, which comes in pieces: what it gives out, joined, does not depend on how it is
    cut. Takes time in proportion to the text. What only looks like a call is content."""

    def __init__(self, schemas: Schemas) -> None:
        self.schemas = schemas
        self.num_calls = 0
        self.is_behind_call = False  # a call began, and nothing was said since
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
        self.is_behind_call = False
        before, self._spaces = self._spaces, [text[len(said):]]
        return [Content("".join([*before, said]))]

    def last_spaces(self) -> list[Piece]:
        """At the end of the text: that of a reply without calls is given out as it was."""
        spaces, self._spaces = "".join(self._spaces), []
        return [Content(spaces)] if spaces and not self.num_calls else []

    def begin(self, name: str, id: str | None = None) -> Call:
        """`id`: the model's own."""
        self._spaces.clear()
        self.num_calls += 1
        self.is_behind_call = True
        return Call(self.num_calls - 1, id or self.new_id(), name)

    def arguments(self, text: str) -> Arguments:
        """More of the JSON of the last call that began."""
        return Arguments(self.num_calls - 1, text)
