"""DeepSeek: V3 and R1 write a kind, the name and fenced JSON, V3.1 the name and JSON. One parser reads both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.app.replies.tools.parser import Form, Schemas
from quire.app.replies.tools.script import FENCE, Step
from quire.app.replies.tools.section import SectionParser

SECTION, SECTION_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_END, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
SHOWN = (SECTION, SECTION_END, CALL, CALL_END, SEPARATOR)


class DeepSeekParser(SectionParser):
    def __init__(self, schemas: Schemas) -> None:
        super().__init__(schemas, SECTION, SECTION_END, CALL, CALL_END)

    def one_call(self) -> Step[bool]:
        first = yield from self.word()
        yield from self.spaces()
        if not (yield from self.starts(SEPARATOR)):
            return False
        yield from self.spaces()
        name = (yield from self.word()) or first
        yield from self.spaces()
        yield from self.fence()
        found = yield from self.spaces()
        if not name or found not in ("{", "`", "<"):
            return False
        self.forget()
        self.call(name)
        if found == "{":
            yield from self.json()
        else:
            self.argue("{}")
        return True


def tag_v3(name: str, schema: Mapping[str, Any]) -> Form:
    return {"begin": f"{CALL}function{SEPARATOR}{name}\n{FENCE}json\n", "end": f"\n{FENCE}{CALL_END}",
            "content": {"type": "json_schema", "json_schema": dict(schema)}}


def tag_v31(name: str, schema: Mapping[str, Any]) -> Form:
    return {"begin": f"{CALL}{name}{SEPARATOR}", "end": CALL_END,
            "content": {"type": "json_schema", "json_schema": dict(schema)}}
