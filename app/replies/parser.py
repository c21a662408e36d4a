"""From a choice's text to pieces: what is thought, what is said, what is called. One for each choice of a reply."""

from __future__ import annotations

from collections.abc import Iterable

from quire.app.replies.pieces import Content, Piece, Reasoning
from quire.app.replies.thinking import Thinking
from quire.app.replies.tools.parser import ToolParser


class ReplyParser:
    """Either may be None: nothing is thought, or nothing is called."""

    def __init__(self, thinking: Thinking | None, tools: ToolParser | None) -> None:
        self._thinking = thinking
        self._tools = tools

    @property
    def num_calls(self) -> int:
        return 0 if self._tools is None else self._tools.num_calls

    @property
    def is_thinking(self) -> bool:
        return self._thinking is not None and self._thinking.is_inside

    def push(self, text: str) -> list[Piece]:
        return self._pieces([(text, False)] if self._thinking is None else self._thinking.push(text))

    def flush(self) -> list[Piece]:
        pieces = [] if self._thinking is None else self._pieces(self._thinking.flush())
        return pieces if self._tools is None else pieces + self._tools.flush()

    def _pieces(self, parts: Iterable[tuple[str, bool]]) -> list[Piece]:
        pieces: list[Piece] = []
        for text, is_thought in parts:
            if is_thought:
                pieces.append(Reasoning(text))
            elif self._tools is not None:
                pieces += self._tools.push(text)
            elif text:
                pieces.append(Content(text))
        return pieces
