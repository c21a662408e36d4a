"""A hub on loopback, as far as its client asks one: a repository's list and files, slow, silent or refused as told."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789012345678901234567890123456789"
MODEL = "some/model"


class Hub:
    def __init__(self, folder: Path) -> None:
        """Serves the files of `folder` as MODEL."""
        self.folder = folder
        self.status = 200  # of everything
        self.silent = threading.Event()  # nothing is answered while set
        self.bytes_per_s = 0  # 0: as fast as it goes
        self.token = ""  # that must be presented, if any
        self.asked: list[str] = []
        self.address = ""

    def environment(self, cache: Path) -> dict[str, str]:
        return {"HF_ENDPOINT": self.address, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    hub = Hub(folder)
    handler = type("Handler", (_Handler,), {"hub": hub})
    with _Server(("127.0.0.1", 0), handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield hub
        hub.silent.clear()
        server.shutdown()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is what some tests want."""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        hub.asked.append(f"{self.command} {path}")
        while hub.silent.is_set():
            time.sleep(0.02)
        allowed = not hub.token or self.headers.get("authorization") == f"Bearer {hub.token}"
        if hub.status != 200 or not allowed:
            self._send(401 if not allowed else hub.status, b"", {"X-Error-Message": "no"})
        elif path.startswith(f"/api/models/{MODEL}/tree/"):
            self._send_json([{"type": "file", "path": name, "size": len(data), "oid": oid}
                             for name, (data, oid) in self._files().items()])
        elif path.startswith(f"/api/models/{MODEL}"):
            self._send_json({"id": MODEL, "modelId": MODEL, "sha": COMMIT, "siblings": [
                {"rfilename": name, "size": len(data), "blobId": oid} for name, (data, oid) in self._files().items()]})
        elif path.startswith(f"/{MODEL}/resolve/"):
            data, oid = self._files()[path.rsplit("/", 1)[1]]
            self._send(200, data, {"ETag": f'"{oid}"', "X-Repo-Commit": COMMIT})
        else:
            self._send(404, b"", {})

    def _files(self) -> dict[str, tuple[bytes, str]]:
        return {file.name: (data := file.read_bytes(), hashlib.sha1(data).hexdigest())
                for file in sorted(self.hub.folder.iterdir())}

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"content-type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        slice_bytes = self.hub.bytes_per_s // 20 if self.hub.bytes_per_s and len(body) > 10000 else len(body) or 1
        for start in range(0, len(body), slice_bytes):
            self.wfile.write(body[start:start + slice_bytes])
            if slice_bytes < len(body):
                time.sleep(0.05)

    def log_message(self, format: str, *args: Any) -> None:
        pass
