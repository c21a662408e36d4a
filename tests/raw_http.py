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
         quiet_s: float = 0.3) -> Answer:
    """Send, then read until the server closes, or has been quiet for `quiet_s` after saying something."""
    with connect(address, tls) as client:
        for piece in pieces:
            client.sendall(piece)
        return receive(client, wait_s, quiet_s)


def receive(client: socket.socket, wait_s: float = 5.0, quiet_s: float = 0.3) -> Answer:
    raw, closed = b"", False
    client.settimeout(wait_s)
    try:
        while True:
            got = client.recv(65536)
            if not got:
                closed = True
                break
            raw += got
            client.settimeout(quiet_s)
    except TimeoutError:
        pass
    except ConnectionResetError:
        closed = True
    return Answer(replies(raw), closed, raw)


def replies(raw: bytes) -> list[Reply]:
    """The whole replies in `raw`, interim ones too; an unfinished one at the end counts with what there is of it."""
    found = []
    while raw:
        if not raw.startswith(b"HTTP/1."):  # to a request of HTTP/0.9
            found.append(Reply(0, {}, raw))
            break
        head, _, rest = raw.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        status = int(lines[0].split()[1])
        if headers.get("transfer-encoding") == "chunked":
            body, raw = _dechunk(rest)
        else:
            length = 0 if status < 200 else int(headers.get("content-length", len(rest)))
            body, raw = rest[:length], rest[length:]
        found.append(Reply(status, headers, body))
    return found


def _dechunk(raw: bytes) -> tuple[bytes, bytes]:
    body = b""
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        length = int(size, 16)
        body += raw[:length]
        raw = raw[length + 2:]
        if not length:
            break
    return body, raw
