"""`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, repeated: Hermes, Qwen2.5, QwQ, Qwen3, Granite 4."""

from __future__ import annotations

from quire.app.replies.markers import MarkerFinder
from quire.app.replies.pieces import Piece
from quire.app.replies.tools.parser import JsonCallReader, Schemas, ToolParser

BEGIN, END = "<tool_call>", "</tool_call>"


class HermesParser(ToolParser):
    def __init__(self, schemas: Schemas) -> None:
        super().__init__(schemas)
        self._outside = MarkerFinder(BEGIN)
        self._inside = MarkerFinder(END, BEGIN)  # a model may leave the end out
        self._call: JsonCallReader | None = None
        self._is_inside = False

    def push(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        while text:
            if self._call is not None:
                pieces += self._call.push(text)
                text = self._call.rest
                if not self._call.ended:
                    break
                if self._call.failed:
                    self._is_inside = False
                    pieces += self.content(BEGIN + self._call.raw())
                self._call = None
            elif self._is_inside:
                _, marker, text = self._inside.push(text)
                self._is_inside = False if marker == END else self._is_inside
                self._call = JsonCallReader(self) if marker == BEGIN else None
            else:
                before, marker, text = self._outside.push(text)
                pieces += self.content(before)
                if marker:
                    self._is_inside, self._call = True, JsonCallReader(self)
        return pieces

    def flush(self) -> list[Piece]:
        cut = "" if self._call is None or self._call.begun else BEGIN + self._call.raw()
        return self.content(cut + self._outside.flush()) + self.last_spaces()
