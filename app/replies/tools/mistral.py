"""Mistral: `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`, and since the 11th version of its tokenizer
`[TOOL_CALLS]NAME[ARGS]{...}`, repeated. One parser reads both."""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Mapping
from typing import Any

from quire.app.replies.tools.json_list import JsonListParser
from quire.app.replies.tools.parser import Form, Schemas
from quire.app.replies.tools.script import Step

CALLS, ARGUMENTS, ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
SHOWN = (CALLS, ARGUMENTS, ID)
_CHARACTERS = string.ascii_letters + string.digits
_ID = re.compile(r"[a-zA-Z0-9]*")


class MistralParser(JsonListParser):
    def __init__(self, schemas: Schemas) -> None:
        super().__init__(schemas, CALLS)

    def new_id(self) -> str:
        """Mistral's templates refuse others."""
        return "".join(secrets.choice(_CHARACTERS) for _ in range(9))

    def calls(self) -> Step[None]:
        name = yield from self.word()
        if not name:
            yield from super().calls()
            return
        yield from self.spaces()
        id = None
        if (yield from self.starts(ID)):
            id = yield from self.word(_ID)
        yield from self.starts(ARGUMENTS)
        if (yield from self.spaces()) != "{":
            self.no_call()
            return
        self.forget()
        self.call(name, id if id and len(id) == 9 else None)
        yield from self.json()


def tag(name: str, schema: Mapping[str, Any]) -> Form:
    return {"begin": f"{CALLS}{name}{ARGUMENTS}", "content": {"type": "json_schema", "json_schema": dict(schema)},
            "end": ""}
