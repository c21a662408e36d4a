"""A real HTTP server on the loopback whose answers are a test's: a function of the request and of how often it came."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# (body, how many times it came before) -> status, headers, JSON; None: the connection is cut.
Script = Callable[[dict[str, Any], int], "tuple[int, dict[str, str], Any] | None"]


def answer(body: dict[str, Any], _: int) -> tuple[int, dict[str, str], Any]:
    return 200, {}, {"echo": body, "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


class Seen:
    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.most_at_once = self.at_once = 0
        self.lock = threading.Lock()


@contextmanager
def scripted(script: Script = answer) -> Iterator[tuple[str, Seen]]:
    """Its address, and what it saw."""
    seen, counts = Seen(), Counter[str]()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(404, {}, {})

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            with seen.lock:
                seen.at_once += 1
                seen.most_at_once = max(seen.most_at_once, seen.at_once)
                before = counts[raw.decode()]
                counts[raw.decode()] += 1
                seen.bodies.append(json.loads(raw))
                seen.keys.add(self.headers.get("authorization"))
            said = script(json.loads(raw), before)
            with seen.lock:
                seen.at_once -= 1
            if said is None:
                self.close_connection = True
                self.connection.close()
            else:
                self._send(*said)

        def _send(self, status: int, headers: dict[str, str], value: Any) -> None:
            raw = value if isinstance(value, bytes) else json.dumps(value, indent=1).encode()
            self.send_response(status)
            for name, text in ({"x-request-id": "r1", "content-length": str(len(raw))} | headers).items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            pass

        def finish(self) -> None:
            try:
                super().finish()
            except (OSError, ValueError):  # cut on purpose
                pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
