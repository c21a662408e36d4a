"""A reply as OpenAI's Responses API has it: a list of items (what was thought, said and called), and the events that
tell of each as it comes.

An item is told of in full before the next begins. What is streamed and what is sent whole is the same list.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from quire.app.json_pieces import as_raw
from quire.app.replies.pieces import Arguments, Call, Content, Piece, Reasoning
from quire.app.schemas.responses import CallItem, MessageItem, OutputText, ReasoningItem, ReasoningText

_encode = msgspec.json.encode


class Events:
    """Numbers the events of one stream, and writes them."""

    def __init__(self) -> None:
        self._next = 0

    def write(self, kind: bytes, fields: bytes) -> bytes:
        """`fields` are JSON, without the braces around them."""
        number = self._next
        self._next += 1
        return b'event: %b\ndata: {"type":"%b","sequence_number":%d,%b}\n\n' % (kind, kind, number, fields)


@dataclass(frozen=True)
class _Kind:
    """Of items. `delta` and `done` are the events of its text, which `text` names in the last of them."""

    prefix: str  # of ids
    delta: bytes
    done: bytes
    item: Callable[[_Open, str], object]
    part: Callable[[_Open], object] | None = None  # that holds the text; None: the item itself does
    has_logprobs: bool = False
    text: str = "text"


@dataclass
class _Open:
    """The item that is being told of."""

    kind: _Kind
    index: int
    call: Call | None = None
    texts: list[str] = field(default_factory=list)
    logprobs: list[msgspec.Raw] = field(default_factory=list)
    id: str = ""

    def __post_init__(self) -> None:
        self.id = f"{self.kind.prefix}_{secrets.token_hex(12)}"

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def parts(self) -> list[msgspec.Raw]:
        """One, or none where nothing was said yet."""
        assert self.kind.part is not None
        return [as_raw(self.kind.part(self))] if self.texts else []

    def as_call(self, status: str) -> CallItem:
        assert self.call is not None
        return CallItem(self.id, self.call.id, self.call.name, self.text, status)


_MESSAGE = _Kind("msg", b"response.output_text.delta", b"response.output_text.done",
                 lambda item, status: MessageItem(item.id, item.parts(), status),
                 lambda item: OutputText(item.text, item.logprobs), has_logprobs=True)
_REASONING = _Kind("rs", b"response.reasoning_text.delta", b"response.reasoning_text.done",
                   lambda item, status: ReasoningItem(item.id, item.parts(), status),
                   lambda item: ReasoningText(item.text))
_CALL = _Kind("fc", b"response.function_call_arguments.delta", b"response.function_call_arguments.done",
              lambda item, status: item.as_call(status), text="arguments")


class Items:
    """Fed with pieces as they come; `output` has the items that are whole. What tells of them is returned as events."""

    def __init__(self, events: Events | None, *, with_reasoning: bool = True) -> None:
        """`events` None: nobody is told before the end."""
        self.output: list[msgspec.Raw] = []
        self._events = events
        self._with_reasoning = with_reasoning
        self._open: _Open | None = None
        self._place = b""  # where the open item's text is, as its events tell it
        self._logprobs: list[msgspec.Raw] = []  # of tokens that may yet turn out to be content
        self._speaks = True  # the last piece was content, or none came yet
        self._told: list[bytes] = []

    def push(self, pieces: list[Piece], logprobs: list[msgspec.Raw]) -> list[bytes]:
        """`logprobs` are those of the tokens that came with `pieces`, and are told of content."""
        if logprobs:
            self._note(pieces, logprobs)
        for piece in pieces:
            match piece:
                case Content(text):
                    self._add(_MESSAGE, text)
                case Reasoning(text):
                    if self._with_reasoning:
                        self._add(_REASONING, text)
                case Call():
                    self._begin(_CALL, piece)
                case Arguments(_, text):
                    self._add(_CALL, text)
        return self._taken()

    def end(self, status: str) -> list[bytes]:
        """The last item is "completed" or "incomplete"; a reply without a word is an empty message."""
        if self._open is None and not self.output:
            self._add(_MESSAGE, "")
        if self._open is not None and self._open.kind.has_logprobs:
            self._open.logprobs += self._logprobs  # of an end token, say, which is no text
        self._finish(status)
        return self._taken()

    def _taken(self) -> list[bytes]:
        told, self._told = self._told, []
        return told

    def _note(self, pieces: list[Piece], logprobs: list[msgspec.Raw]) -> None:
        """Behind thoughts and calls, tokens without a piece are tags'."""
        self._logprobs = self._logprobs + logprobs if self._speaks else logprobs
        if pieces:
            self._speaks = isinstance(pieces[-1], Content)
            if not any(isinstance(piece, Content) for piece in pieces):
                self._logprobs = []

    def _add(self, kind: _Kind, text: str) -> None:
        item = self._open
        if item is None or item.kind is not kind:
            item = self._begin(kind, None)
        item.texts.append(text)
        after = b""
        if kind.has_logprobs:
            item.logprobs += self._logprobs
            after = b',"logprobs":%b' % _encode(self._logprobs) if self._logprobs else b',"logprobs":[]'
            self._logprobs = []
        if self._events is not None and text:
            # By hand around constant parts: this is what a worker does for every token.
            self._told.append(self._events.write(kind.delta, b'%b,"delta":%b%b' % (self._place, _encode(text), after)))

    def _begin(self, kind: _Kind, call: Call | None) -> _Open:
        self._finish("completed")
        self._open = item = _Open(kind, len(self.output), call)
        if (events := self._events) is not None:
            told = _encode(kind.item(item, "in_progress"))
            self._told.append(events.write(b"response.output_item.added", b'"output_index":%d,"item":%b' % (
                item.index, told)))
            self._place = b'"item_id":"%b","output_index":%d' % (item.id.encode(), item.index)
            if kind.part is not None:
                self._place += b',"content_index":0'
                part = _encode(kind.part(item))
                self._told.append(events.write(b"response.content_part.added", b'%b,"part":%b' % (self._place, part)))
        return item

    def _finish(self, status: str) -> None:
        if (item := self._open) is None:
            return
        self._open = None
        whole = as_raw(item.kind.item(item, status))
        self.output.append(whole)
        if (events := self._events) is None:
            return
        after = b',"logprobs":%b' % _encode(item.logprobs) if item.kind.has_logprobs else b""
        self._told.append(events.write(item.kind.done, b'%b,"%b":%b%b' % (
            self._place, item.kind.text.encode(), _encode(item.text), after)))
        if item.kind.part is not None:
            part = _encode(item.kind.part(item))
            self._told.append(events.write(b"response.content_part.done", b'%b,"part":%b' % (self._place, part)))
        self._told.append(events.write(b"response.output_item.done", b'"output_index":%d,"item":%b' % (
            item.index, whole)))
