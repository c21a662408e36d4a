"""Asks the server's own /readyz over its own port, so that "ready" means what clients would see."""

from __future__ import annotations

import http.client
import socket
from dataclasses import dataclass

import msgspec

TIMEOUT_S = 1.0


@dataclass(frozen=True)
class Readiness:
    ready: bool
    phase: str = "starting"
    fraction: float = 0.0


class _Connection(http.client.HTTPConnection):
    """To an address as a socket gives it, whatever its family."""

    def __init__(self, listener: socket.socket) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._listener = listener

    def connect(self) -> None:
        address = self._listener.getsockname()
        if not isinstance(address, str) and address[0] in ("0.0.0.0", "::"):
            address = ("127.0.0.1" if address[0] == "0.0.0.0" else "::1", *address[1:])
        self.sock = socket.socket(self._listener.family, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(address)


def probe(listener: socket.socket) -> Readiness:
    connection = _Connection(listener)
    try:
        connection.request("GET", "/readyz")
        reply = connection.getresponse()
        body = msgspec.json.decode(reply.read())
    except (OSError, http.client.HTTPException, msgspec.DecodeError):
        return Readiness(False)  # no worker yet
    finally:
        connection.close()
    if reply.status == 200:
        return Readiness(True)
    return Readiness(False, str(body.get("phase", "starting")), float(body.get("fraction", 0.0)))
