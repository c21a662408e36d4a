"""`<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>`: Qwen3-Coder, Qwen3.5,
Nemotron 3; Seed-OSS with outer tags of its own.

Models leave out the outer tags, and ends of parameters: the next one then begins on a line of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.app.replies.markers import Markers
from quire.app.replies.tools.parameter_script import ParameterScript
from quire.app.replies.tools.parameters import Markup, object_of, parameters
from quire.app.replies.tools.parser import Form, Schemas
from quire.app.replies.tools.script import KEY, Step

QWEN = "<tool_call>", "</tool_call>"
SEED = "<seed:tool_call>", "</seed:tool_call>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_MARKUP = Markup(begin=lambda key, is_text: f"{_PARAMETER}{key}>\n", end=_PARAMETER_END, gap="\n", after="\n")


class QwenXmlParser(ParameterScript):
    marks = QWEN

    def __init__(self, schemas: Schemas) -> None:
        super().__init__(schemas)
        self._begin, self._end = self.marks
        self._outside = Markers(self._begin, _FUNCTION)
        self._inside = Markers(_PARAMETER, _FUNCTION_END, self._end, self._begin, _FUNCTION)

    def read(self) -> Step[None]:
        while (mark := (yield from self.until_call(self._outside))):
            has_begun = False
            while mark in (self._begin, _FUNCTION):
                self.keep(mark)
                has_begun = has_begun or mark == self._begin  # without the outer tag, any text may hold the inner one
                while mark == self._begin:
                    yield from self.spaces()
                    mark = yield from self.starts(self._begin, _FUNCTION)
                name = yield from self.word()
                is_call = bool(name) and (has_begun or name in self.schemas)
                if not is_call or not (yield from self.starts(">")):
                    self.no_call()
                    break
                self.open_call(name)
                mark = yield from self._parameters(self._ends(name))
                if mark == _FUNCTION_END:
                    mark = yield from self.next_of(self._end)

    def _ends(self, name: str) -> Markers:
        """Of a value. What would end one whose own end is missing may be a part of it but for what leaves no doubt."""
        keys = filter(KEY.fullmatch, object_of(self.schemas.get(name, {}), "properties"))
        return Markers(_PARAMETER_END, f"\n{_FUNCTION_END}\n{self._end}", *(f"\n{_PARAMETER}{key}>" for key in keys))

    def _parameters(self, ends: Markers) -> Step[str]:
        """Reads all up to the call's end; returns the mark there."""
        mark = yield from self.until(self._inside, self.drop)
        while mark == _PARAMETER:
            key = yield from self.word(KEY)
            yield from self.starts(">")
            end = yield from self.value(key, ends, gap="\n")
            while end.startswith(f"\n{_PARAMETER}"):
                end = yield from self.value(end[len(_PARAMETER) + 1:-1], ends, gap="\n")
            if not end:
                return ""
            mark = _FUNCTION_END if end != _PARAMETER_END else (yield from self.until(self._inside, self.drop))
        self.close_call()
        return mark


class SeedParser(QwenXmlParser):
    marks = SEED


def tag(marks: tuple[str, str], name: str, schema: Mapping[str, Any]) -> Form:
    begin, end = marks
    return {"begin": f"{begin}\n{_FUNCTION}{name}>\n", "content": parameters(schema, _MARKUP.form),
            "end": f"{_FUNCTION_END}\n{end}"}
