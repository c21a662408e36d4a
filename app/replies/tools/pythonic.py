"""`[f(a=1, b="x"), g()]`: Llama 3.2's small models, Llama 4, ToolACE, and within marks of their own LFM2 and Olmo 3.

Values are literals of Python or JSON; one that is neither is passed on as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.app.replies.json_text import quoted
from quire.app.replies.markers import Markers
from quire.app.replies.tools.parameters import parameters
from quire.app.replies.tools.parser import Form, Schemas
from quire.app.replies.tools.python_literal import as_json
from quire.app.replies.tools.script import Script, Step

LLAMA4 = "<|python_start|>", "<|python_end|>"
OLMO3 = "<function_calls>", "</function_calls>"
LFM2 = "<|tool_call_start|>", "<|tool_call_end|>"
_OUTSIDE = Markers('"', "'", *"()[]{},")
_INSIDE = {quote: Markers("\\", quote) for quote in ('"', "'", '"""', "'''")}
_DEPTHS = {bracket: depth for brackets, depth in (("([{", 1), (")]}", -1)) for bracket in brackets}


class PythonicParser(Script):
    """A list of calls at the beginning of a reply, or after a mark."""

    marks = LLAMA4
    needs_mark = False
    needs_brackets = True

    def __init__(self, schemas: Schemas) -> None:
        super().__init__(schemas)
        self._mark, self._end = self.marks
        self._outside = Markers(self._mark)

    def read(self) -> Step[None]:
        self.keep()
        if not self.needs_mark and (yield from self.spaces()) == "[":
            yield from self._calls()
        else:
            self.no_call()
        while (mark := (yield from self.until_call(self._outside))):
            self.keep(mark)
            yield from self.spaces()
            while (yield from self.starts(self._mark)):
                yield from self.spaces()
            yield from self._calls()
            yield from self.next_of(self._end)

    def _calls(self) -> Step[None]:
        is_list = bool((yield from self.starts("[")))
        if self.needs_brackets and not is_list:
            self.no_call()
            return
        while True:
            yield from self.spaces()
            if not (yield from self._call()):
                self.no_call()
                return
            if is_list:
                if (found := (yield from self.next_of("]", ","))) != ",":
                    return
                self.keep(found)
                yield from self.spaces()
                if (yield from self.starts("]")):
                    self.forget()
                    return
            else:
                self.keep()
                if not (yield from self.spaces()).isidentifier():
                    self.no_call()
                    return

    def _call(self) -> Step[bool]:
        """False: it is none, and what was read is kept."""
        name = yield from self.word()
        if not name or not (yield from self.starts("(")):
            return False
        before = "{"
        while True:
            yield from self.spaces()
            if (yield from self.starts(")")):
                if before == "{":
                    self.forget()
                    self.call(name)
                    self.argue("{")
                self.argue("}")
                return True
            key = yield from self.word()
            yield from self.spaces()
            if not key or not (yield from self.starts("=")):
                if before != "{":
                    self.argue("}")
                return before != "{"
            if before == "{":
                self.forget()
                self.call(name)
            value, end = yield from self._value()
            if end:
                self.argue(f"{before}{quoted(key)}: {as_json(value) or quoted(value.strip())}")
                before = ", "
            if end == ",":
                continue
            if end:
                self.argue("}")
            return True

    def _value(self) -> Step[tuple[str, str]]:
        """The text of a literal, and what ends it; nothing at the end of the text."""
        parts: list[str] = []
        depth = 0
        while True:
            found = yield from self.until(_OUTSIDE, parts.append)
            if not found or (depth == 0 and found in ",)]}"):
                return "".join(parts), found
            parts.append(found)
            depth += _DEPTHS.get(found, 0)
            if found in "\"'":
                quote = found
                if (yield from self.starts(quote * 2)):
                    parts.append(quote * 2)
                    quote *= 3
                yield from self._quoted(quote, parts)

    def _quoted(self, quote: str, parts: list[str]) -> Step[None]:
        """The rest of a text, with the quotes at its end."""
        while (found := (yield from self.until(_INSIDE[quote], parts.append))):
            parts.append(found)
            if found == quote:
                return
            while self._at == len(self._text):
                if not (yield from self.more()):
                    return
            parts.append(self.take(self._at + 1))


class Lfm2Parser(PythonicParser):
    marks, needs_mark = LFM2, True


class Olmo3Parser(PythonicParser):
    """A call a line."""

    marks, needs_mark, needs_brackets = OLMO3, True, False


_WORDS = {"boolean": ("True", "False"), "null": ("None",)}


def tag(name: str, schema: Mapping[str, Any]) -> Form:
    return {"begin": f"{name}(", "content": parameters(schema, _parameter, ", "), "end": ")"}


def _parameter(key: str, schema: Mapping[str, Any]) -> Form:
    words = _WORDS.get(str(schema.get("type"))) if "enum" not in schema and "const" not in schema else None
    content: Form = {"type": "json_schema", "json_schema": dict(schema)} if words is None else {
        "type": "or", "elements": [{"type": "const_string", "value": word} for word in words]}
    return {"type": "tag", "begin": f"{key}=", "content": content, "end": ""}
