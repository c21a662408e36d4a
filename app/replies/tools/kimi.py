"""Kimi K2: calls have ids of the model's own, `functions.NAME:NUMBER`, which its template wants back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from quire.app.replies.tools.parser import Form, Schemas
from quire.app.replies.tools.script import Step
from quire.app.replies.tools.section import SectionParser

SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, CALL_END, ARGUMENTS = "<|tool_call_begin|>", "<|tool_call_end|>", "<|tool_call_argument_begin|>"
SHOWN = (SECTION, SECTION_END, CALL, CALL_END, ARGUMENTS)
_ID = re.compile(r"[\w.:-]*")
_NUMBER = re.compile(r":\d+$")


class KimiParser(SectionParser):
    def __init__(self, schemas: Schemas) -> None:
        super().__init__(schemas, SECTION, SECTION_END, CALL, CALL_END)
        self._ids: set[str] = set()

    def one_call(self) -> Step[bool]:
        id = yield from self.word(_ID)
        name = _NUMBER.sub("", id).removeprefix("functions.")
        yield from self.spaces()
        if not name or not (yield from self.starts(ARGUMENTS)):
            return False
        found = yield from self.spaces()
        if found not in ("{", "<"):
            return False
        self.forget()
        self.call(name, None if id in self._ids else id)
        self._ids.add(id)
        if found == "{":
            yield from self.json()
        else:
            self.argue("{}")
        return True


def tag(name: str, schema: Mapping[str, Any]) -> Form:
    arguments = [{"type": "regex", "pattern": "[0-9]{1,3}"}, {"type": "const_string", "value": ARGUMENTS},
                 {"type": "json_schema", "json_schema": dict(schema)}]
    return {"begin": f"{CALL}functions.{name}:", "content": {"type": "sequence", "elements": arguments},
            "end": CALL_END}
