"""`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen2.5, QwQ, Qwen3, Granite 4."""

from __future__ import annotations

from quire.app.replies.tools.parser import Schemas
from quire.app.replies.tools.tagged_json import TaggedJsonParser

BEGIN, END = "<tool_call>", "</tool_call>"


class HermesParser(TaggedJsonParser):
    def __init__(self, schemas: Schemas) -> None:
        super().__init__(schemas, BEGIN, END)
