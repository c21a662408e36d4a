"""Calls of tools in messages: as clients send them back, and as replies have them."""

from __future__ import annotations

from typing import Any

import msgspec

from quire.engine.messages import UNREADABLE


class SentFunction(msgspec.Struct, frozen=True):
    name: str
    arguments: str | dict[str, Any] | None = None


class SentCall(msgspec.Struct, frozen=True):
    function: SentFunction
    id: str = ""
    type: str = "function"

    def as_templates_take_it(self) -> dict[str, Any]:
        """With the arguments as an object: an empty one where they are none, so that no old conversation fails."""
        arguments = self.function.arguments
        if isinstance(arguments, str):
            try:
                arguments = msgspec.json.decode(arguments)
            except UNREADABLE:
                arguments = {}
        return {"id": self.id, "type": "function", "function": {
            "name": self.function.name, "arguments": arguments if isinstance(arguments, dict) else {}}}


class Function(msgspec.Struct):
    name: str
    arguments: str  # JSON of an object


class ToolCall(msgspec.Struct):
    id: str
    function: Function
    type: str = "function"
