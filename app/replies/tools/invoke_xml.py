"""`<invoke name="NAME"><parameter name="KEY">VALUE</parameter></invoke>`, several within outer tags: MiniMax M2, and
DeepSeek V3.2 and V4 with tags that a token of their own marks, and a word for whether the value is text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from quire.app.replies.markers import Markers
from quire.app.replies.tools.parameter_script import ParameterScript
from quire.app.replies.tools.parameters import Markup, parameters
from quire.app.replies.tools.parser import Form, Schemas
from quire.app.replies.tools.script import KEY, Step

_STRING = ' string="'


@dataclass(frozen=True)
class Tags:
    mark: str  # in front of the names of all tags but the outer ones
    outer: tuple[str, ...]  # names of them: the first is the usual one
    outer_mark: str
    tells_text: bool = False

    def begin(self, name: str) -> str:
        return f"<{self.mark}{name} name=\""

    def end(self, name: str) -> str:
        return f"</{self.mark}{name}>"

    @cached_property
    def opening(self) -> tuple[str, ...]:
        return tuple(f"<{self.outer_mark}{name}>" for name in self.outer)

    @cached_property
    def closing(self) -> tuple[str, ...]:
        return tuple(f"</{self.outer_mark}{name}>" for name in self.outer)


DEEPSEEK = Tags("｜DSML｜", ("function_calls", "tool_calls", "toolcalls", "tool"), "｜DSML｜", tells_text=True)
MINIMAX = Tags("", ("tool_call",), "minimax:")


class InvokeParser(ParameterScript):
    def __init__(self, schemas: Schemas, tags: Tags) -> None:
        super().__init__(schemas)
        self._tags = tags
        self._invoke, self._invoke_end = tags.begin("invoke"), tags.end("invoke")
        self._parameter = tags.begin("parameter")
        self._outside = Markers(*tags.opening)
        self._inside = Markers(self._parameter, self._invoke_end, self._invoke, *tags.closing)
        self._ends = Markers(tags.end("parameter"))

    def read(self) -> Step[None]:
        while (mark := (yield from self.until_call(self._outside))):
            self.keep(mark)
            yield from self.spaces()
            while (yield from self.starts(*self._tags.opening)):
                yield from self.spaces()
            mark = yield from self.starts(self._invoke)
            has_call = False
            while mark == self._invoke:
                if has_call:
                    self.keep(mark)
                name = yield from self.word()
                has_call = bool(name) and bool((yield from self.starts('">')))
                if not has_call:
                    break
                self.open_call(name)
                mark = yield from self._parameters()
                if mark == self._invoke_end:
                    mark = yield from self.next_of(self._invoke, *self._tags.closing)
            if not has_call:
                self.no_call()

    def _parameters(self) -> Step[str]:
        mark = yield from self.until(self._inside, self.drop)
        while mark == self._parameter:
            key = yield from self.word(KEY)
            yield from self.starts('"')
            is_text = None
            if self._tags.tells_text and (yield from self.starts(_STRING)):
                is_text = (yield from self.starts("true", "false")) == "true"
                yield from self.starts('"')
            yield from self.starts(">")
            if not (yield from self.value(key, self._ends, is_text)):
                return ""
            mark = yield from self.until(self._inside, self.drop)
        self.close_call()
        return mark


def form(tags: Tags) -> Callable[[str, Mapping[str, Any]], Form]:
    def begin(key: str, is_text: bool) -> str:
        kind = f'{_STRING}{"true" if is_text else "false"}"' if tags.tells_text else ""
        return f'{tags.begin("parameter")}{key}"{kind}>'

    markup = Markup(begin, end=tags.end("parameter"), after="\n")

    def tag(name: str, schema: Mapping[str, Any]) -> Form:
        return {"begin": f'{tags.begin("invoke")}{name}">\n', "content": parameters(schema, markup.form),
                "end": tags.end("invoke") + "\n"}  # here, and not before what follows: a grammar does not look ahead
    return tag
