"""HTTP as bytes over a socket, for tests of what a server does with requests that no client library would send."""

from __future__ import annotations

import json
import socket
import ssl
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes
    is_whole: bool

    @property
    def error(self) -> dict[str, Any]:
        found = json.loads(self.body)["error"]
        assert isinstance(found, dict)
        return found


@dataclass(frozen=True)
class Answer:
    replies: list[Reply]
    closed: bool  # by the server, within the time
    raw: bytes

    @property
    def statuses(self) -> list[int]:
        return [reply.status for reply in self.replies]


def connect(address: tuple[str, int], tls: ssl.SSLContext | None = None, name: str = "localhost") -> socket.socket:
    client = socket.create_connection(address, timeout=10)
    return client if tls is None else tls.wrap_socket(client, server_hostname=name)


def send(address: tuple[str, int], *pieces: bytes, tls: ssl.SSLContext | None = None, wait_s: float = 5.0,
         num: int = 1, quiet_s: float = 0.1) -> Answer:
    with connect(address, tls) as client:
        for piece in pieces:
            client.sendall(piece)
        return receive(client, wait_s, num, quiet_s)


def receive(client: socket.socket, wait_s: float = 5.0, num: int = 1, quiet_s: float = 0.1) -> Answer:
    """Reads until the server closes, or has sent `num` whole replies and then nothing for `quiet_s`. A reply that
    announces the end of the connection is waited out; with `num` 0 the first bytes are enough."""
    raw, closed = b"", False
    try:
        while True:
            client.settimeout(quiet_s if _is_all(raw, num) else wait_s)
            got = client.recv(65536)
            if not got:
                closed = True
                break
            raw += got
    except TimeoutError:
        pass
    except ConnectionResetError:
        closed = True
    return Answer(replies(raw), closed, raw)


def _is_all(raw: bytes, num: int) -> bool:
    if not num:
        return bool(raw)
    found = replies(raw)
    return (sum(reply.is_whole for reply in found) >= num
            and not any(reply.headers.get("connection") == "close" for reply in found))


def replies(raw: bytes) -> list[Reply]:
    """The replies in `raw`, interim ones too; an unfinished one at the end counts with what there is of it."""
    found = []
    while raw:
        if not raw.startswith(b"HTTP/1."):  # to a request of HTTP/0.9, or the first bytes of a head
            found.append(Reply(0, {}, raw, is_whole=False))
            break
        head, end, rest = raw.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        status = int([*lines[0].split(), "0"][1])
        if headers.get("transfer-encoding") == "chunked":
            body, raw, is_whole = _dechunk(rest)
        else:
            length = 0 if status < 200 else int(headers.get("content-length", len(rest) + 1))
            body, raw = rest[:length], rest[length:]
            is_whole = bool(end) and len(body) == length
        found.append(Reply(status, headers, body, is_whole))
    return found


def _dechunk(raw: bytes) -> tuple[bytes, bytes, bool]:
    """The body, what follows it, and whether it ended."""
    body = b""
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        length = int(size, 16)
        body += raw[:length]
        raw = raw[length + 2:]
        if not length:
            return body, raw, True
    return body, raw, False
