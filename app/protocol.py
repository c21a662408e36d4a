"""HTTP/1.1 on one connection, stricter than uvicorn's protocol, which does the work: what a head may look like and
weigh, how long a peer may take to send it and its body, who may connect at all.

Refuses to know paths, keys and what a body holds. A refusal is OpenAI's error object with `connection: close`; what the
peer sends after it is dropped, and replies that are still due to requests before it come first. Made by
`quire.app.worker` for each connection; what connections share is in `connections`.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn._types import ASGI3Application, ASGISendEvent
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from quire.app.connections import Connections
from quire.app.errors import ApiError
from quire.app.tls import Tls, names_of

MAX_TARGET_BYTES = 8192
MAX_PIPELINED = 8  # requests that may wait on a connection for the reply to the one before them
SLICE_BYTES = 8192  # that the parser gets at once: of what a client may send, some 0.5 ms
# How long a connection that is to be closed may go on sending: closed at once, it would get a reset, not the reply.
LINGER_S = 5.0

_IDLE, _HEAD, _BODY = range(3)  # what is being received
_CHECKED = frozenset({b"host", b"transfer-encoding", b"expect"})
_FRAMING = (b"content-length", b"transfer-encoding")
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+;=%-]*)(:\d*)?")
_PROBES = (b"/livez", b"/healthz", b"/readyz", b"/health", b"/ping")
_BAD_TARGET = "The target of the request is not a valid path."
_REASONS = {400: "malformed", 405: "method", 414: "head_too_large", 431: "head_too_large", 505: "http_version"}


class _Transport:
    """The connection's transport for the layers above, whose way of closing is the protocol's."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.raw = transport
        self.write = transport.write
        self.close = close
        self.closed = False
        self._is_wanted = True  # by the layers above
        self._is_held = False

    def is_closing(self) -> bool:
        return self.closed or self.raw.is_closing()

    def pause_reading(self) -> None:
        self._is_wanted = False
        self.raw.pause_reading()

    def resume_reading(self) -> None:
        self._is_wanted = True
        if not self._is_held:
            self.raw.resume_reading()

    def hold_reading(self) -> None:
        """Nothing more is read, whatever the layers above want, until `release_reading`."""
        self._is_held = True
        self.raw.pause_reading()

    def release_reading(self) -> None:
        self._is_held = False
        if self._is_wanted and not self.raw.is_closing():
            self.raw.resume_reading()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


class _Unchunked(RequestResponseCycle):
    """A request of HTTP/1.0, which knows no chunks: a reply of unknown length ends with the connection."""

    async def send(self, message: ASGISendEvent) -> None:
        self.chunked_encoding = False
        self.expected_content_length = (
            len(message.get("body", b"")) if message["type"] == "http.response.body" else 0)
        await super().send(message)


class _BodyEvents:
    """What a parser may tell of a body whose head another one has read."""

    def __init__(self, protocol: HttpProtocol) -> None:
        self.on_header = protocol.on_header  # a trailer's
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_last_message_complete


class HttpProtocol(HttpToolsProtocol):
    """At most one timer runs for what the peer owes (uvicorn's keep-alive slot holds it), one more while it does not
    read."""

    transport: Any  # a _Transport

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any],
                 _loop: asyncio.AbstractEventLoop | None = None, *, connections: Connections) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._shared = connections
        self._limits = connections.settings
        self._address: str | None = None  # set: counted in `connections`
        self._unwelcome: ApiError | None = None  # the answer to whatever is asked
        self._refusal: ApiError | None = None  # nothing is read any more
        self._stall: asyncio.TimerHandle | None = None
        self._answering: RequestResponseCycle | None = None  # of the requests received, the one whose turn it is
        self._unparsed = memoryview(b"")

        self._receiving = _IDLE
        self._moved_on = False  # what is received is not what it was when the deadline was set
        self._feed_bytes = 0  # in what the parser was last given
        self._undigested_bytes = 0  # given to the parser since it last made something of what it got
        self._num_hosts = 0
        self._host = b""  # one that was found right
        self._was_held = False  # the body had to wait for the application
        self._framing = b""  # the head's lines that say how long the body is
        self._is_last_in = False  # all of a request that would upgrade: what follows it is not HTTP

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Transport(transport, self._close))  # type: ignore[arg-type]
        self._arm(self._limits.header_timeout, self._close)
        if len(self.connections) > self._shared.max_open and not self._shared.make_room(self._others()):
            self._unwelcome = ApiError(503, f"This worker has {self._shared.max_open} connections, all of them busy, "
                                       "and may not open more files (ulimit -n). Please try again.",
                                       headers={"retry-after": "1"}, reason="connections")
        if self.client is not None and self._shared.has_limit(self.client[0]):
            if self._shared.opened(self.client[0]):
                self._address = self.client[0]
            else:
                self._refuse(ApiError(503, f"{self.client[0]} has too many connections open; the server allows "
                                      f"{self._limits.max_connections_per_ip} (--max-connections-per-ip).",
                                      headers={"retry-after": "1"}, reason="connections"))
        if self._shared.tls is not None and self.scheme == "https":
            self._check_client_names(self._shared.tls)

    def _others(self) -> Iterator[HttpProtocol]:
        return (found for found in self.connections if isinstance(found, HttpProtocol) and found is not self)

    def is_idle(self) -> bool:
        """Whether nothing is owed to the peer, nor has it begun to send anything."""
        return (self._receiving == _IDLE and not self._responding() and not self.transport.is_closing()
                and self.timeout_keep_alive_task is not None)

    def idle_since(self) -> float:
        """Of an idle connection: when that began."""
        assert self.timeout_keep_alive_task is not None
        time_s = self._limits.header_timeout if self.cycle is None else self.timeout_keep_alive
        return self.timeout_keep_alive_task.when() - time_s

    def drop(self) -> None:
        """Close it at once, whatever is still to be sent."""
        self.transport.raw.abort()

    def _check_client_names(self, tls: Tls) -> None:
        names = names_of(self.transport.get_extra_info("peercert"))
        if not tls.names_allowed(names):
            self._shared.log("client certificate refused", names=names[:10], client=self.client and self.client[0])
            self._unwelcome = ApiError(403, "The names of this client certificate are not among those that the server "
                                       "lets in (--ssl-client-names).", reason="client_certificate")

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport.closed = True
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self.resume_writing()
        if self._address is not None:
            self._shared.closed(self._address)

    def _close(self) -> None:
        """Once what was written is sent. A peer that may still be sending is given time to stop and read the reply."""
        transport = self.transport
        if transport.closed:
            return
        transport.closed = True
        self._unset_keepalive_if_required()
        lingers = self._refusal is not None or self._receiving == _BODY
        if lingers:
            self.flow.resume_reading()
        if lingers and transport.can_write_eof():
            transport.write_eof()
        else:  # under TLS, where closing is a dialogue and waits for the peer by itself
            transport.raw.close()
        if lingers or transport.get_write_buffer_size():
            self._arm(LINGER_S if lingers else self._limits.body_timeout, transport.raw.abort)

    def shutdown(self) -> None:
        if self.transport.closed and self._is_flooding:  # it would not be heard to go before its time is up
            self.transport.raw.abort()
        super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall is None:
            self._stall = self.loop.call_later(self._limits.body_timeout, self.transport.raw.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    # What is received

    @property
    def _is_deaf(self) -> bool:
        """Whether what comes is dropped."""
        return self._refusal is not None or self.transport.closed or self._is_last_in

    @property
    def _is_flooding(self) -> bool:
        return self._refusal is not None and self._refusal.reason == "pipelining"

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        if self._unparsed:  # what was on its way when reading stopped
            self._unparsed = memoryview(bytes(self._unparsed) + data)
        elif len(data) <= SLICE_BYTES:
            self._take(data)
        else:
            self._unparsed = memoryview(data)
            self.transport.hold_reading()
            self._shared.turns.enter(self._take_slice)

    def _take_slice(self) -> bool:
        """Whether there are more."""
        if not self._is_deaf:
            data, self._unparsed = self._unparsed[:SLICE_BYTES], self._unparsed[SLICE_BYTES:]
            self._take(data)
        if self._is_deaf:
            self._unparsed = memoryview(b"")
        if not self._unparsed and not self._is_flooding:
            self.transport.release_reading()
        return bool(self._unparsed)

    def _take(self, data: bytes | memoryview) -> None:
        self._feed_bytes = len(data)
        self._undigested_bytes += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            if not self._is_last_in:
                self._refuse(_as_refusal(error))
                return
        if self._undigested_bytes > self._limits.max_header_bytes:
            self._refuse(self._too_long())
            return
        if self._moved_on:
            self._moved_on = False
            self._watch_sender()
        if self._receiving and self.flow.read_paused:
            self._was_held = True

    def _parse(self, data: bytes | memoryview) -> None:
        try:
            self.parser.feed_data(data)
            return
        except httptools.HttpParserUpgrade as upgrade:
            body = data[upgrade.args[0]:]
        # It stopped at the head of a request that asks for an upgrade. Nobody gets one: the request is answered as any
        # other, and the connection closed. A second parser reads its body, and nothing after it: a strict one takes no
        # byte more once a head has said "close".
        self.parser = httptools.HttpRequestParser(_BodyEvents(self))
        self.parser.feed_data(b"POST / HTTP/1.1\r\nConnection: close\r\n" + self._framing + b"\r\n")
        self.parser.feed_data(body)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._receiving = _HEAD
        self._moved_on = True
        self._num_hosts = 0

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > MAX_TARGET_BYTES:
            raise ApiError(414, f"The request's path and query are longer than {MAX_TARGET_BYTES} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in _CHECKED:
            self._check_header(name, value)
        self.headers.append((name, value))
        if len(self.headers) > self._limits.max_headers:
            raise ApiError(431, f"The request has more headers than the server takes, {self._limits.max_headers} "
                           "(--max-headers).")

    def _check_header(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            self._num_hosts += 1
            if value != self._host:
                if not _HOST.fullmatch(value):
                    raise ApiError(400, "The header Host is not a host name with an optional port.")
                self._host = value
        elif name == b"transfer-encoding":
            # Anything else is understood differently by different servers, which is how requests are smuggled.
            if value.strip().lower() != b"chunked" or self.parser.get_http_version() != "1.1":
                raise ApiError(400, "Transfer-Encoding can only be chunked, and only in HTTP/1.1.")
        elif value.lower() == b"100-continue":
            self.expect_100_continue = True

    def on_headers_complete(self) -> None:
        if self._unwelcome is not None and not (self._unwelcome.status == 503 and self.url in _PROBES):
            raise self._unwelcome
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ApiError(503, f"More than {MAX_PIPELINED} requests wait on this connection for the reply to the one "
                           "before them. Please wait for replies, or use more connections.",
                           headers={"retry-after": "1"}, reason="pipelining")
        self._check_head()
        super().on_headers_complete()
        if self.parser.get_http_version() == "1.0":
            self.cycle.__class__ = _Unchunked
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False
            self._framing = b"".join(b"%s: %s\r\n" % line for line in self.headers if line[0] in _FRAMING)
        self.headers = []  # for trailers: the application has its head, and must not see it grow
        self._receiving = _BODY
        self._moved_on = True
        self._undigested_bytes = 0
        self._was_held = self.expect_100_continue

    def _check_head(self) -> None:
        most = self._limits.max_header_bytes
        if (self._feed_bytes > most or self._undigested_bytes > most) and self._head_bytes() > most:
            raise self._too_long()
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise ApiError(505, f"This server speaks HTTP/1.1, not HTTP/{version}.")
        if self._num_hosts != 1 and (version == "1.1" or self._num_hosts):
            raise ApiError(400, "A request has one header Host.")
        if self.url == b"*":  # of OPTIONS, which nothing here answers
            raise ApiError(400, _BAD_TARGET)
        if self.parser.should_upgrade() and self.parser.get_method() == b"CONNECT":
            raise ApiError(405, "This server is not a proxy: it does not take CONNECT.", headers={"allow": "GET, POST"})

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _too_long(self) -> ApiError:
        return ApiError(431, f"The request's head is longer than {self._limits.max_header_bytes} bytes "
                        "(--max-header-bytes).")

    def on_body(self, body: bytes) -> None:
        self._undigested_bytes = 0
        super().on_body(body)

    def on_last_message_complete(self) -> None:
        self.on_message_complete()
        self._is_last_in = True

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():  # that was its head: `_parse` has yet to read the body
            return
        super().on_message_complete()
        self._receiving = _IDLE
        self._moved_on = True
        self._undigested_bytes = 0

    # What is due, and until when

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _responding(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _arm(self, delay_s: float, job: Callable[[], None]) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(delay_s, job)

    def _watch_sender(self) -> None:
        if self._receiving == _BODY:
            self._arm(self._limits.body_timeout, self._on_late_body)
        elif self._responding():
            self._unset_keepalive_if_required()  # the application's turn; a head that follows may come when it likes
        elif self._receiving == _HEAD:
            self._arm(self._limits.header_timeout, self._on_late_head)
        else:
            self._arm(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._receiving == _IDLE and self._refusal is None:
            return  # uvicorn has begun the next request, or set the time of an idle connection
        if self.transport.closed or self._responding():
            return
        if self._refusal is not None:
            self._answer_refusal(self._refusal)
        else:
            self._watch_sender()

    def _on_late_head(self) -> None:
        self._refuse(ApiError(408, f"The request's head did not arrive within {self._limits.header_timeout:g} seconds "
                              "(--header-timeout).", reason="header_timeout"))

    def _on_late_body(self) -> None:
        if self._was_held:  # it was we who did not read: begin to count anew
            self._was_held = self.flow.read_paused or self.cycle.waiting_for_100_continue
            self._watch_sender()
            return
        self._refuse(ApiError(408, f"The request's body did not arrive within {self._limits.body_timeout:g} seconds "
                              "(--body-timeout).", reason="body_timeout"))

    # Refusals

    def _refuse(self, error: ApiError) -> None:
        self._refusal = error
        error.headers["x-request-id"] = request_id = uuid.uuid4().hex
        self._shared.refused(_REASONS.get(error.status) or error.reason, status=error.status, message=error.message,
                             request_id=request_id, client=self.client and self.client[0])
        if error.reason == "pipelining":  # those that wait are not answered: the client sends them again
            assert self._answering is not None
            self.transport.hold_reading()  # for good: to drop what floods in takes longer than anything else here
            self.pipeline.clear()
            self.cycle = self._answering
        if self._receiving != _BODY:
            if not self._responding():
                self._answer_refusal(error)
            # else on_response_complete does
        elif self.cycle.response_complete:  # the application did not care for the body
            self._close()
        elif self.cycle.response_started or self.pipeline:  # too late to say anything
            self.transport.abort()
        else:
            self.cycle.disconnected = True  # the application reads this as a client that went away
            self.cycle.message_event.set()
            self._answer_refusal(error)

    def _answer_refusal(self, error: ApiError) -> None:
        body = error.body()
        head = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}", "content-type: application/json",
                f"content-length: {len(body)}", "connection: close",
                *(f"{name}: {value}" for name, value in error.headers.items()), "", ""]
        self.transport.write("\r\n".join(head).encode("latin-1") + body)
        self._close()


def _as_refusal(error: httptools.HttpParserError) -> ApiError:
    cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
    if isinstance(cause, ApiError):
        return cause
    if isinstance(cause, httptools.HttpParserError):
        return ApiError(400, f"This is not a valid HTTP/1.1 request: {cause}.")
    return ApiError(400, _BAD_TARGET)
