"""The input of OpenAI's Responses API as a conversation that chat templates take.

Its items are smaller than messages: what an assistant thought, said and called in one turn comes as several, and is one
message to a template. Lenient where clients are: items that a reply held may be sent back as they came, or with less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from quire.app.errors import ApiError
from quire.app.schemas.body import decode_field
from quire.app.schemas.chat import MAX_MESSAGES, MAX_PARTS
from quire.app.schemas.media import SentImages, is_image
from quire.app.schemas.raw import NULL, begins, says_something, shown_json, text_of
from quire.app.schemas.sampling import check_at_most
from quire.app.schemas.tool_calls import SentCall, SentFunction
from quire.app.schemas.unknown import OF_CLIENTS_IN_MESSAGES
from quire.engine.frontend.prompts import check_json

ROLES = ("user", "assistant", "system", "developer")
# By the type of a part, its field.
_SAID = {"input_text": "text", "output_text": "text", "text": "text"}
_SAID_BY_ASSISTANT = {**_SAID, "refusal": "refusal"}
_THOUGHT = {"reasoning_text": "text", "summary_text": "text"}
_HARMLESS_IN_PARTS = frozenset({"annotations", "logprobs", "parsed", "cache_control"})
_OF_CLIENTS = OF_CLIENTS_IN_MESSAGES | {"encrypted_content"}  # another server's, which nobody can read here

_IMAGE = msgspec.Raw(b'"input_image"')
_ITEMS = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_PARTS = msgspec.json.Decoder(list[msgspec.Raw])
_PART = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ARGUMENTS = msgspec.json.Decoder(str | dict[str, Any] | None)

Item = dict[str, msgspec.Raw]


def conversation_of(sent: msgspec.Raw, instructions: str | None, images: SentImages, max_model_len: int
                    ) -> list[dict[str, Any]]:
    """The messages of the field `input`, behind the `instructions`: with system messages that come first they are one,
    as most templates take no second. `images` gets what they hold.

    Raises:
        ApiError: names the item at fault.
        InvalidRequestError: a text is longer than any prompt.
    """
    reader = _Reader(images, max_model_len)
    if begins(sent, b'"'):
        messages = [{"role": "user", "content": reader.content(sent, "input", _SAID)}]
    elif begins(sent, b"["):
        messages = reader.messages(decode_field("input", _ITEMS, sent))
    else:
        raise ApiError(400, f"input must be text or a list of items, got {shown_json(sent)}.", "input")
    if not instructions:
        if not messages:
            raise ApiError(400, "input must hold something that is said, called or answered; it has thoughts alone.",
                           "input")
        return messages
    num_first = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    texts = [instructions, *(_text(message["content"]) for message in messages[:num_first])]
    return [{"role": "system", "content": "\n\n".join(texts)}, *messages[num_first:]]


@dataclass
class _Turn:
    """An assistant's, which may go on: once it has called, all that follows until the results belongs to it."""

    thought: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    calls: list[SentCall] = field(default_factory=list)

    def message(self) -> dict[str, Any]:
        found: dict[str, Any] = {"role": "assistant", "content": "\n".join(self.said)}
        if self.calls:
            found["tool_calls"] = [call.as_templates_take_it() for call in self.calls]
        if self.thought:
            found["reasoning"] = found["reasoning_content"] = "\n".join(self.thought)
        return found


class _Reader:
    """Of one request's items, in order."""

    def __init__(self, images: SentImages, max_model_len: int) -> None:
        self._images = images
        self._unknown = images.unknown
        self._max_model_len = max_model_len
        self._messages: list[dict[str, Any]] = []
        self._turn: _Turn | None = None
        self._num_parts = 0

    def messages(self, items: list[Item]) -> list[dict[str, Any]]:
        if not items:
            raise ApiError(400, "input must hold at least one item.", "input")
        check_at_most("input", len(items), MAX_MESSAGES, what="items")
        for i, item in enumerate(items):
            where = f"input[{i}]"
            kind = _kind(item, where)
            kind.read(self, item, where)
            self._meet_unknown(item, where, kind.fields, kind.harmless)
        self._end_turn()
        return self._messages

    def content(self, raw: msgspec.Raw | None, where: str, fields: dict[str, str], *, with_images: bool = False
                ) -> str | list[dict[str, str]]:
        """A text, or the texts of parts of the types in `fields`, as templates take them, and images where these may
        be."""
        if raw is not None and begins(raw, b'"'):
            check_json(bytes(raw), self._max_model_len)
        text = text_of(raw, where)
        if text is not None:
            return text
        if raw is None or not begins(raw, b"["):
            raise ApiError(400, f"{where} must be text or a list of text parts, got {shown_json(raw)}.", where)
        parts = decode_field(where, _PARTS, raw)
        self._num_parts += len(parts)
        check_at_most("input", self._num_parts, MAX_PARTS, what="content parts in all")
        opened = [decode_field(f"{where}[{i}]", _PART, part) if begins(part, b"{") else {}
                  for i, part in enumerate(parts)]
        check_json(b"".join(value for part in opened if not is_image(part, _IMAGE) for value in part.values()),
                   self._max_model_len)
        return [self._image(part, f"{where}[{i}]", with_images) if part.get("type") == _IMAGE else
                {"type": "text", "text": self._part(part, f"{where}[{i}]", fields)} for i, part in enumerate(opened)]

    def read_message(self, item: Item, where: str) -> None:
        role = text_of(item.get("role"), f"{where}.role")
        if role not in ROLES:
            raise ApiError(400, f"{where}.role must be one of {', '.join(ROLES)}; got {shown_json(item.get('role'))}.",
                           f"{where}.role")
        if role != "assistant":
            self._end_turn()
            content = self.content(item.get("content"), f"{where}.content", _SAID, with_images=role == "user")
            self._messages.append({"role": "system" if role == "developer" else role, "content": content})
            return
        turn = self._turn_to_go_on(lambda turn: not turn.said)
        if says_something(item.get("content")):
            turn.said.append(_text(self.content(item["content"], f"{where}.content", _SAID_BY_ASSISTANT)))

    def read_call(self, item: Item, where: str) -> None:
        name = _required_text(item, "name", where)
        arguments = item.get("arguments", NULL)
        check_json(bytes(arguments), self._max_model_len)
        function = SentFunction(name, decode_field(f"{where}.arguments", _ARGUMENTS, arguments))
        self._turn_to_go_on(lambda turn: True).calls.append(SentCall(function, _required_text(item, "call_id", where)))

    def read_result(self, item: Item, where: str) -> None:
        self._end_turn()
        output = self.content(item.get("output"), f"{where}.output", _SAID)
        self._messages.append({"role": "tool", "content": _text(output),
                               "tool_call_id": _required_text(item, "call_id", where)})

    def read_reasoning(self, item: Item, where: str) -> None:
        """What was thought, or else its summary."""
        told = next((name for name in ("content", "summary") if says_something(item.get(name))), None)
        if told is not None:
            turn = self._turn_to_go_on(lambda turn: not turn.said)
            turn.thought.append(_text(self.content(item[told], f"{where}.{told}", _THOUGHT)))

    def read_reference(self, item: Item, where: str) -> None:
        raise ApiError(400, f"{where} refers to an item of an earlier response, and this server stores none; send the "
                       "item itself.", where)

    def _turn_to_go_on(self, fits: Callable[[_Turn], bool]) -> _Turn:
        """The turn that an item belongs to: the one before, if it has called or what comes `fits` behind it."""
        if self._turn is None or not (self._turn.calls or fits(self._turn)):
            self._end_turn()
            self._turn = _Turn()
        return self._turn

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._messages.append(self._turn.message())
            self._turn = None

    def _image(self, part: Item, where: str, may_be: bool) -> dict[str, str]:
        self._images.check_taken(where, "input_image")
        if not may_be:
            raise ApiError(400, f"{where}: images stand in messages of the user's.", where)
        return self._images.take_input_image(part, where)

    def _part(self, part: Item, where: str, fields: dict[str, str]) -> str:
        kind = text_of(part.get("type"), f"{where}.type")
        if kind is None or kind not in fields:
            raise ApiError(400, f"{where}: this model takes {self._images.kinds}; parts of type "
                           f"{shown_json(part.get('type'))} are not supported here, only {', '.join(fields)}.", where)
        text = text_of(part.get(fields[kind]), f"{where}.{fields[kind]}")
        if text is None:
            raise ApiError(400, f"{where}.{fields[kind]} must be text.", f"{where}.{fields[kind]}")
        self._meet_unknown(part, where, ("type", fields[kind]), _HARMLESS_IN_PARTS)
        return text

    def _meet_unknown(self, sent: Item, where: str, known: Iterable[str], harmless: frozenset[str]) -> None:
        for name, value in sent.items():
            if name not in known and name not in harmless and says_something(value):
                self._unknown.meet(name, f"{where}.{name}", known, _OF_CLIENTS)


@dataclass(frozen=True)
class _Kind:
    """Of items: which fields are read, and which say nothing to the model."""

    read: Callable[[_Reader, Item, str], None]
    fields: tuple[str, ...]
    harmless: frozenset[str] = frozenset({"id", "status"})


_TAKEN = {
    "message": _Kind(_Reader.read_message, ("type", "role", "content"), frozenset({"id", "status", "phase"})),
    "function_call": _Kind(_Reader.read_call, ("type", "name", "call_id", "arguments"),
                           frozenset({"id", "status", "parsed_arguments"})),
    "function_call_output": _Kind(_Reader.read_result, ("type", "call_id", "output")),
    "reasoning": _Kind(_Reader.read_reasoning, ("type", "content", "summary")),
}
_KINDS = {**_TAKEN, "item_reference": _Kind(_Reader.read_reference, ("type", "id"))}


def _kind(item: Item, where: str) -> _Kind:
    """Without a type, what has a role is a message."""
    sent = item.get("type", NULL)
    name = ("message" if "role" in item else "") if sent == NULL else text_of(sent, f"{where}.type")
    kind = _KINDS.get(name or "")
    if kind is None:
        raise ApiError(400, f"{where}.type must be one of {', '.join(_TAKEN)}; got {shown_json(sent)}.",
                       f"{where}.type")
    return kind


def _required_text(item: Item, name: str, where: str) -> str:
    text = text_of(item.get(name), f"{where}.{name}")
    if text is None:
        raise ApiError(400, f"{where}.{name} must be text, got {shown_json(item.get(name))}.", f"{where}.{name}")
    return text


def _text(content: str | list[dict[str, str]]) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)
