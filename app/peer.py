"""A server that the command line talks to over HTTP: where it is, and the key for it.

On the standard library alone. Used by `quire run-batch` and `quire top`; knows no endpoint.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from quire.engine.messages import UNREADABLE

CONNECT_S = 10.0
UNIX = "unix:"


def with_scheme(address: str) -> str:
    """`address`, of which people may leave http:// out."""
    return address if "://" in address or address.startswith(UNIX) else f"http://{address}"


class Reply(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Unreachable(Exception):
    """No connection was made, so the server knows nothing of the request."""


class Lost(Exception):
    """The connection broke before the reply was whole: the server may have done the work."""


class Peer:
    """`address` is http://..., https://... or unix:PATH, with or without /v1 at its end.

    Raises ValueError where it is none of these, or the key cannot be a header.
    """

    def __init__(self, address: str, key: str = "") -> None:
        if not (key.isascii() and key.isprintable()):
            raise ValueError("the API key holds characters that a header cannot")
        self.address = address.rstrip("/").removesuffix("/v1")
        self.headers = {"authorization": f"Bearer {key}"} if key else {}
        self._socket = self.address.removeprefix(UNIX) if address.startswith(UNIX) else ""
        self._host, self._port, self.prefix = "localhost", None, ""
        if self._socket:
            return
        if not address.startswith(("http://", "https://")):
            raise ValueError(f"{address} does not begin with http://, https:// or {UNIX}")
        if " " in address or not address.isprintable():
            raise ValueError(f"{address!r} is no address: it holds a space or a control character")
        parts = urlsplit(self.address)
        if not parts.hostname:
            raise ValueError(f"{address} names no host")
        if not parts.path.isascii():
            raise ValueError(f"{address}: the path may hold ASCII characters alone")
        try:
            parts.hostname.encode("idna")
        except UnicodeError:
            raise ValueError(f"{address} is no address: no host can have this name") from None
        self._host, self._port, self.prefix = parts.hostname, parts.port, parts.path
        self._context = ssl.create_default_context() if parts.scheme == "https" else None

    def connect(self, timeout_s: float) -> http.client.HTTPConnection:
        """A connection to be opened with the first request; `timeout_s` is that of each wait for bytes."""
        if self._socket:
            return _UnixConnection(self._socket, timeout_s)
        if self._context is not None:
            return http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=self._context)
        return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)

    def get(self, path: str, timeout_s: float = CONNECT_S) -> Reply:
        """On a connection of its own. Raises Unreachable or Lost."""
        line = Line(self, timeout_s)
        try:
            return line.ask("GET", path)
        finally:
            line.close()


class Line:
    """One connection to a server, opened when it is needed and kept for the next request. For one thread."""

    def __init__(self, peer: Peer, timeout_s: float) -> None:
        self._peer = peer
        self._timeout_s = timeout_s
        self._connection: http.client.HTTPConnection | None = None

    def ask(self, method: str, path: str, body: bytes | None = None) -> Reply:
        """Raises Unreachable or Lost."""
        if self._connection is not None:  # the server may have closed it for its idleness
            try:
                return self._exchange(self._connection, method, path, body)
            except (BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected):
                self.close()
            except (OSError, http.client.HTTPException) as error:
                self.close()
                raise Lost(why(error)) from None
        connection = self._opened()
        try:
            reply = self._exchange(connection, method, path, body)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Lost(why(error)) from None
        return reply

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _opened(self) -> http.client.HTTPConnection:
        connection = self._peer.connect(CONNECT_S)
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise Unreachable(why(error)) from None
        connection.sock.settimeout(self._timeout_s)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a machine that is gone says nothing
        return connection

    def _exchange(self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None) -> Reply:
        headers = self._peer.headers | ({} if body is None else {"content-type": "application/json"})
        connection.request(method, self._peer.prefix + path, body, headers)
        response = connection.getresponse()
        reply = Reply(response.status, response.headers, response.read())
        self._connection = None if response.will_close else connection
        if response.will_close:
            connection.close()
        return reply


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _Message(msgspec.Struct):
    message: str


class _Refusal(msgspec.Struct):
    error: _Message


def message_of(reply: Reply) -> str:
    """What the server says is wrong."""
    try:
        return msgspec.json.decode(reply.body, type=_Refusal).error.message
    except UNREADABLE:
        return f"the server answered {reply.status}"


def why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
