"""The way in that needs neither TLS nor certificate: a Unix socket in the run directory, for this user only.

gunicorn's master opens it (`listen_for_probes`), every HTTP worker answers on it as on the port, and the launcher asks
it whether the server is ready, so that "ready" means what clients would see. Exec probes of containers may use it too.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
from dataclasses import dataclass

import msgspec

from quire.engine.messages import UNREADABLE

TIMEOUT_S = 1.0
_NAME = "probe.sock"


@dataclass(frozen=True)
class Readiness:
    ready: bool
    phase: str = "starting"
    fraction: float = 0.0


def listen_for_probes(run_dir: str) -> socket.socket:
    path = os.path.join(run_dir, _NAME)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # of a server that was killed
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen()
    return listener


def is_probe_socket(listener: socket.socket) -> bool:
    address = listener.getsockname()
    return isinstance(address, str) and os.path.basename(address) == _NAME


class _Connection(http.client.HTTPConnection):
    def __init__(self, run_dir: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = os.path.join(run_dir, _NAME)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


def probe(run_dir: str) -> Readiness:
    connection = _Connection(run_dir)
    try:
        connection.request("GET", "/readyz")
        reply = connection.getresponse()
        body = msgspec.json.decode(reply.read())
    except (OSError, http.client.HTTPException, *UNREADABLE):
        return Readiness(False)  # no worker yet
    finally:
        connection.close()
    if reply.status == 200:
        return Readiness(True)
    return Readiness(False, str(body.get("phase", "starting")), float(body.get("fraction", 0.0)))
