"""The content blocks of a reply of Anthropic's API, made of its pieces: as the events of a stream, or whole.

A block ends where a piece of another kind comes, or another call begins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from quire.app.replies.pieces import Arguments, Call, Content, Piece, Reasoning
from quire.app.schemas.blocks import TOOL_ID
from quire.app.schemas.messages import ShownThoughts
from quire.engine.messages import UNREADABLE

_encode = msgspec.json.encode
_ANY_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NO_INPUT = msgspec.Raw(b"{}")


class TextOut(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class ThinkingOut(msgspec.Struct, tag_field="type", tag="thinking"):
    thinking: str
    signature: str  # a digest: clients want one with each block, and nobody here checks it


class ToolUseOut(msgspec.Struct, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: msgspec.Raw


def event(kind: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


class BlockEvents:
    """Of one reply."""

    def __init__(self, shown: ShownThoughts) -> None:
        self._shown = shown
        self._index = -1
        self._kind: type[Piece] | None = None  # of the block that is open
        self._digest = hashlib.sha256()  # of the thoughts in it

    def push(self, pieces: Iterable[Piece]) -> list[bytes]:
        """The events that this much more of the reply makes."""
        events: list[bytes] = []
        for piece in pieces:
            match piece:
                case Content(text):
                    if self._kind is not Content:
                        events += self._begin(Content, TextOut(""))
                    events.append(self._delta(b'"text_delta","text":', text))
                case Reasoning(text):
                    events += self._think(text)
                case Call(_, id, name):
                    events += self._begin(Call, ToolUseOut(TOOL_ID + id, name, _NO_INPUT))
                case Arguments(_, text):
                    events.append(self._delta(b'"input_json_delta","partial_json":', text))
        return events

    def end(self) -> list[bytes]:
        """The end of the block that is open."""
        if self._kind is None:
            return []
        events = []
        if self._kind is Reasoning:
            events.append(self._delta(b'"signature_delta","signature":', self._digest.hexdigest()))
        self._kind = None
        return [*events, event("content_block_stop", b'{"type":"content_block_stop","index":%d}' % self._index)]

    def _think(self, text: str) -> list[bytes]:
        if not self._shown.blocks:
            return []
        events: list[bytes] = []
        if self._kind is not Reasoning:
            events = self._begin(Reasoning, ThinkingOut("", ""))
            self._digest = hashlib.sha256()
        self._digest.update(text.encode("utf-8", "surrogatepass"))
        return [*events, self._delta(b'"thinking_delta","thinking":', text)] if self._shown.text else events

    def _begin(self, kind: type[Piece], block: msgspec.Struct) -> list[bytes]:
        ended = self.end()
        self._kind = kind
        self._index += 1
        return [*ended, event("content_block_start", b'{"type":"content_block_start","index":%d,"content_block":%b}' % (
            self._index, _encode(block)))]

    def _delta(self, head: bytes, text: str) -> bytes:
        return (b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":%b%b}}\n\n'
                % (self._index, head, _encode(text)))


def blocks_of(pieces: Iterable[Piece], shown: ShownThoughts) -> list[msgspec.Struct]:
    """The same of a whole reply."""
    runs: list[tuple[type[Piece], Call | None, list[str]]] = []
    for piece in pieces:
        match piece:
            case Call():
                runs.append((Call, piece, []))
            case Arguments(_, text):
                runs[-1][2].append(text)
            case Content(text) | Reasoning(text) if shown.blocks or isinstance(piece, Content):
                if not runs or runs[-1][0] is not type(piece):
                    runs.append((type(piece), None, []))
                runs[-1][2].append(text)
    return [_block(kind, call, "".join(texts), shown) for kind, call, texts in runs]


def _block(kind: type[Piece], call: Call | None, text: str, shown: ShownThoughts) -> msgspec.Struct:
    if call is not None:
        return ToolUseOut(TOOL_ID + call.id, call.name, _input(text))
    if kind is Content:
        return TextOut(text)
    signature = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return ThinkingOut(text if shown.text else "", signature)


def _input(arguments: str) -> msgspec.Raw:
    """An empty one where a call was cut off: it is an object, whatever comes."""
    raw = arguments.encode()
    try:
        _ANY_OBJECT.decode(raw)
    except UNREADABLE:
        return _NO_INPUT
    return msgspec.Raw(raw)
