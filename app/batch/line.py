"""A line of the input, in OpenAI's batch form, and a line of the output.

Refuses to know files and servers. A request's body stays the JSON that it was, and so does a reply's.
"""

from __future__ import annotations

import re
import uuid
from typing import Any, NamedTuple

import msgspec

from quire.engine.messages import UNREADABLE

# Any path of ours may take JSON. What administers the server is no work for a file of requests, by whichever way.
_PATH = re.compile(r"(?=.{2,200}$)(?!/admin(/|$))(/(?!\.)[A-Za-z0-9._-]+)+")
_EXAMPLE = '{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {...}}'
_MOST_SHOWN = 80
MOST_CUSTOM_ID = 512
MOST_TEXT = 2000  # characters of a reply that is no JSON


class Task(NamedTuple):
    number: int  # of its line, from 1
    custom_id: str
    url: str
    body: bytes


class BadLine(NamedTuple):
    number: int
    custom_id: str | None
    message: str


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Result(NamedTuple):
    """A line of the output with its newline, and what is counted of it."""

    line: bytes
    failed: bool
    usage: Usage = Usage()


class _Request(msgspec.Struct):
    custom_id: Any = None
    method: Any = None
    url: Any = None
    body: msgspec.Raw = msgspec.Raw()


class _Stream(msgspec.Struct):
    stream: Any = False


class _SentUsage(msgspec.Struct):
    """As chat has it, the Responses API, or Anthropic's, which counts cached tokens apart."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0


class _Used(msgspec.Struct):
    usage: _SentUsage | None = None


class _Error(msgspec.Struct):
    code: str
    message: str
    line: int  # of the input


class _Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw


class _Done(msgspec.Struct):
    id: str
    custom_id: str | None
    response: _Response | None
    error: _Error | None


class _SeenResponse(msgspec.Struct):
    status_code: int


class _SeenError(msgspec.Struct):
    line: int = 0


class Seen(msgspec.Struct):
    """A line of the output as the next run reads it."""

    custom_id: str | None
    response: _SeenResponse | None
    error: _SeenError | None = None

    @property
    def failed(self) -> bool:
        return self.response is None or self.response.status_code != 200

    @property
    def bad_line(self) -> int:
        """The number of the input's line, where that had no custom_id; else 0."""
        return self.error.line if self.custom_id is None and self.error is not None else 0


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_stream = msgspec.json.Decoder(_Stream).decode
_decode_used = msgspec.json.Decoder(_Used).decode
_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode
decode_seen = msgspec.json.Decoder(Seen).decode
_encode = msgspec.json.encode


def parse(raw: bytes, number: int) -> Task | BadLine:
    """The request of a line, or what is wrong with it."""
    try:
        request = _decode_request(raw)
    except UNREADABLE as error:
        said = "not a JSON object" if isinstance(error, msgspec.ValidationError) else f"not JSON: {error}"
        return BadLine(number, None, f"the line is {said}; a line is {_EXAMPLE}")
    if not isinstance(request.custom_id, str) or not 0 < len(request.custom_id) <= MOST_CUSTOM_ID:
        return BadLine(number, None, "custom_id must be text of 1 to "
                       f"{MOST_CUSTOM_ID} characters, got {_shown(request.custom_id)}")
    problem = _problem(request)
    if problem:
        return BadLine(number, request.custom_id, problem)
    return Task(number, request.custom_id, request.url, bytes(request.body))


def _problem(request: _Request) -> str:
    if request.method != "POST":
        return f"method must be \"POST\", got {_shown(request.method)}"
    if not isinstance(request.url, str) or not _PATH.fullmatch(request.url):
        return ("url must be a path of the server such as /v1/chat/completions, without a host and not below /admin, "
                f"got {_shown(request.url)}")
    if not bytes(request.body).lstrip().startswith(b"{"):
        return f"body must be a JSON object, got {bytes(request.body)[:_MOST_SHOWN].decode(errors='replace') or 'none'}"
    if _decode_stream(request.body).stream not in (False, None):
        return "body.stream must be false or left out: a reply is one line of the output"
    return ""


def _shown(value: Any) -> str:
    text = _encode(value).decode()
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "..."


def replied(task: Task, status: int, request_id: str, body: bytes) -> Result:
    """The line of a reply, whatever its status. A body that is no JSON becomes a text."""
    usage = Usage()
    try:
        # Newlines between values are JSON's white space; within values they are always escaped.
        raw = msgspec.Raw(bytes(_decode_raw(body)).replace(b"\n", b" "))
        if status == 200:
            usage = _counted(_decode_used(body).usage or _SentUsage())
    except msgspec.ValidationError:  # a usage of another kind
        pass
    except UNREADABLE:
        if status == 200:
            return failed(task, "unreadable_reply", f"the reply is not JSON: {body[:_MOST_SHOWN]!r}")
        raw = msgspec.Raw(_encode(body[:MOST_TEXT].decode(errors="replace")))
    return _result(task.custom_id, _Response(status, request_id, raw), None, status != 200, usage)


def _counted(sent: _SentUsage) -> Usage:
    return Usage(sent.prompt_tokens + sent.input_tokens + sent.cache_read_input_tokens,
                 sent.completion_tokens + sent.output_tokens)


def failed(task: Task | BadLine, code: str, message: str) -> Result:
    """The line of a request without a reply."""
    return _result(task.custom_id, None, _Error(code, message, task.number), True, Usage())


def _result(custom_id: str | None, response: _Response | None, error: _Error | None, failed: bool,
            usage: Usage) -> Result:
    done = _Done(f"batch_req_{uuid.uuid4().hex}", custom_id, response, error)
    return Result(_encode(done) + b"\n", failed, usage)
