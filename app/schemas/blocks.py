"""The messages of Anthropic's API, whose content is text or a list of blocks, as chat templates take them.

Each block is decoded by itself, and what nobody reads is passed over without being decoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from quire.app.errors import ApiError
from quire.app.schemas.body import decode_field
from quire.app.schemas.chat import MAX_MESSAGES, MAX_PARTS, RawMessages
from quire.app.schemas.media import SentImages
from quire.app.schemas.raw import NULL, begins, shown_json, text_of
from quire.app.schemas.sampling import check_at_most
from quire.app.schemas.unknown import OF_CLIENTS_IN_MESSAGES, UnknownFields
from quire.engine.arguments import shown
from quire.engine.frontend.prompts import check_json

TOOL_ID = "toolu_"  # before the id that the model's syntax has for a call, which templates get back
# Of coding agents, another one for each request: a prompt that begins with it is in no cache.
_BILLING = "x-anthropic-billing-header"


class TextBlock(msgspec.Struct, frozen=True):
    text: str


class ImageBlock(msgspec.Struct, frozen=True):
    source: msgspec.Raw


class ToolUse(msgspec.Struct, frozen=True):
    id: str
    name: str
    input: dict[str, Any]


class ToolResult(msgspec.Struct, frozen=True):
    tool_use_id: str
    content: msgspec.Raw = NULL
    is_error: bool | None = None


class Thinking(msgspec.Struct, frozen=True):
    thinking: str


class RedactedThinking(msgspec.Struct, frozen=True):
    """Thoughts that only who wrote them can read."""


Block = TextBlock | ImageBlock | ToolUse | ToolResult | Thinking | RedactedThinking
_TYPES: dict[str, type[Block]] = {"text": TextBlock, "image": ImageBlock, "tool_use": ToolUse,
                                  "tool_result": ToolResult, "thinking": Thinking,
                                  "redacted_thinking": RedactedThinking}
_DECODERS: dict[str, msgspec.json.Decoder[Block]] = {
    name: msgspec.json.Decoder(kind, float_hook=float) for name, kind in _TYPES.items()}
_IMAGE = msgspec.Raw(b'"image"')
_TOOL_RESULT = msgspec.Raw(b'"tool_result"')
_TEXT_ONLY = ("text",)
_OF_ROLE = {"user": ("text", "image", "tool_result"), "system": _TEXT_ONLY,
            "assistant": ("text", "tool_use", "thinking", "redacted_thinking")}
_HARMLESS = frozenset({"type", "cache_control", "citations", "signature", "data", "caller", "toolset_name"})
_HARMLESS_IN_MESSAGES = frozenset({"role", "content", "cache_control"})
_TEXT = msgspec.json.Decoder(str)
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST: msgspec.json.Decoder[list[msgspec.Raw]] = msgspec.json.Decoder(list[msgspec.Raw])


def conversation_of(system: msgspec.Raw, messages: RawMessages, images: SentImages, max_model_len: int
                    ) -> list[dict[str, Any]]:
    """What a chat template gets. Neighbours of one role are one message, as Anthropic's API has it, and each result of
    a tool is a message of its own. `images` gets what they hold.

    Raises:
        ApiError: names the block at fault.
        InvalidRequestError: one is longer than any prompt.
    """
    if not messages:
        raise ApiError(400, "messages must hold at least one message.", "messages")
    check_at_most("messages", len(messages), MAX_MESSAGES, what="messages")
    reader = _Reader(images, max_model_len)
    turns = _Turns(reader)
    for block in reader.blocks(system, "system", _TEXT_ONLY) if system != NULL else []:
        if said := _without_billing(block.text):
            turns.of("system")["content"].append(said)
    num_blocks = 0
    for i, message in enumerate(messages):
        role = _checked_role(message, f"messages[{i}]", images.unknown)
        blocks = reader.blocks(message.get("content", NULL), f"messages[{i}].content", _OF_ROLE[role])
        num_blocks += len(blocks)
        check_at_most("messages", num_blocks, MAX_PARTS, what="content blocks in all")
        turns.take(role, blocks, f"messages[{i}].content")
    return turns.finished()


class _Turns:
    """Messages so far; the content of each is the list of its texts, and of marks for images, until all are there."""

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader
        self._messages: list[dict[str, Any]] = []
        self._tools: dict[str, str] = {}  # id of a call -> name

    def of(self, role: str) -> dict[str, Any]:
        """The last message, where it is of this role, or a new one."""
        if not self._messages or self._messages[-1]["role"] != role:
            self._messages.append({"role": role, "content": []})
        return self._messages[-1]

    def take(self, role: str, blocks: Sequence[Block], where: str) -> None:
        if not blocks:
            self.of(role)
        for i, block in enumerate(blocks):
            match block:
                case TextBlock(text):
                    self.of(role)["content"].append(text)
                case ImageBlock(source):
                    self.of(role)["content"].append(self._reader.images.take_source(source, f"{where}[{i}]"))
                case ToolUse(id, name, input):
                    self._tools[id] = name
                    self.of(role).setdefault("tool_calls", []).append({
                        "id": id.removeprefix(TOOL_ID), "type": "function",
                        "function": {"name": name, "arguments": input}})
                case ToolResult():
                    self._messages.append(self._result(block, f"{where}[{i}].content"))
                case Thinking(thought):
                    self.of(role).setdefault("reasoning", []).append(thought)
                case RedactedThinking():
                    self.of(role)

    def _result(self, result: ToolResult, where: str) -> dict[str, Any]:
        blocks = self._reader.blocks(result.content, where, _TEXT_ONLY) if result.content != NULL else []
        text = "\n".join(block.text for block in blocks)
        if result.is_error and not text.lower().startswith("error"):
            text = f"Error: {text}"  # no template has a place for it
        message = {"role": "tool", "content": [text], "tool_call_id": result.tool_use_id.removeprefix(TOOL_ID)}
        if (name := self._tools.get(result.tool_use_id)) is not None:
            message["name"] = name
        return message

    def finished(self) -> list[dict[str, Any]]:
        """A last message in which the assistant says nothing yet is its reply, which is to be written."""
        last = self._messages[-1]
        if last["role"] == "assistant" and not any(last["content"]) and "tool_calls" not in last:
            self._messages.pop()
        if not self._messages:
            raise ApiError(400, "messages must hold something that is said.", "messages")
        for message in self._messages:
            said = message["content"]
            if len(said) > 1 or not all(isinstance(part, str) for part in said):
                message["content"] = [{"type": "text", "text": part} if isinstance(part, str) else part
                                      for part in said]
            else:
                message["content"] = "".join(said)
            if "reasoning" in message:
                message["reasoning"] = message["reasoning_content"] = "\n".join(message["reasoning"])
        return self._messages


def _checked_role(message: dict[str, msgspec.Raw], where: str, unknown: UnknownFields) -> str:
    role = decode_field(f"{where}.role", _TEXT, message.get("role", NULL))
    if role not in _OF_ROLE:
        raise ApiError(400, f"{where}.role must be one of {', '.join(_OF_ROLE)}; got {shown(role)}.", f"{where}.role")
    for name, value in message.items():
        if name not in _HARMLESS_IN_MESSAGES and value != NULL:
            unknown.meet(name, f"{where}.{name}", ("role", "content"), OF_CLIENTS_IN_MESSAGES)
    return role


@dataclass(frozen=True)
class _Reader:
    """Of the blocks of one request."""

    images: SentImages
    max_model_len: int

    def blocks(self, content: msgspec.Raw, where: str, kinds: tuple[str, ...]) -> list[Any]:
        """Of these kinds; a text is one."""
        if begins(content, b'"'):
            check_json(bytes(content), self.max_model_len)
        if (text := text_of(content, where)) is not None:
            return [TextBlock(text)]
        if not begins(content, b"["):
            raise ApiError(400, f"{where} must be text or a list of blocks, got {shown_json(content)}.", where)
        parts = decode_field(where, _LIST, content)
        check_at_most(where, len(parts), MAX_PARTS, what="blocks")
        opened = [decode_field(f"{where}[{i}]", _OBJECT, raw) for i, raw in enumerate(parts)]
        check_json(b"".join(value for fields in opened for value in _texts(fields)), self.max_model_len)
        return [self._block(raw, fields, f"{where}[{i}]", kinds)
                for i, (raw, fields) in enumerate(zip(parts, opened))]

    def _block(self, raw: msgspec.Raw, fields: dict[str, msgspec.Raw], where: str, kinds: tuple[str, ...]) -> Block:
        kind = decode_field(f"{where}.type", _TEXT, fields.get("type", NULL))
        if kind == "image":
            self.images.check_taken(where, kind, "blocks")
        if kind not in _DECODERS:
            raise ApiError(400, f"{where}: this model takes {self.images.kinds}; blocks of type {shown(kind)} are not "
                           "supported.", where)
        if kind not in kinds:
            raise ApiError(400, f"{where}.type is {shown(kind)}; here it must be {' or '.join(map(repr, kinds))}.",
                           f"{where}.type")
        block = decode_field(where, _DECODERS[kind], raw)
        for name, value in fields.items():
            if name not in block.__struct_fields__ and name not in _HARMLESS and value != NULL:
                self.images.unknown.meet(name, f"{where}.{name}", block.__struct_fields__)
        return block


def _texts(fields: dict[str, msgspec.Raw]) -> Iterable[msgspec.Raw]:
    """Of a block, what may be as long as a text may: no image, and no list of blocks, each of which is looked at."""
    kind = fields.get("type")
    if kind == _IMAGE:
        return ()
    return (value for name, value in fields.items() if kind != _TOOL_RESULT or name != "content")


def _without_billing(text: str) -> str:
    if _BILLING not in text:
        return text
    return "\n".join(line for line in text.split("\n") if not line.lstrip().startswith(_BILLING)).strip("\n")
