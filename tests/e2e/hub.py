"""A hub on loopback, as its clients ask one: a repository's list and files, slow, silent, cut or refused as told.

Speaks Hugging Face's protocol and ModelScope's.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789012345678901234567890123456789"
MODEL = "some/model"


class Hub:
    def __init__(self, folder: Path) -> None:
        """Serves the files of `folder` as MODEL."""
        self.folder = folder
        self.status = 200  # of everything
        self.error_code = ""  # Hugging Face's word for why
        self.silent = threading.Event()  # nothing is answered while set
        self.bytes_per_s = 0  # 0: as fast as it goes
        self.token = ""  # that must be presented, if any
        self.cuts = 0  # times that the connection ends in the middle of a large file
        self.asked: list[str] = []
        self.ranges: list[str] = []
        self.address = ""

    def environment(self, cache: Path) -> dict[str, str]:
        return {"HF_ENDPOINT": self.address, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
                "MODELSCOPE_ENDPOINT": self.address, "MODELSCOPE_CACHE": str(cache), "MODELSCOPE_HOME": str(cache)}

    def sent(self) -> set[str]:
        """Names of the files whose content somebody got."""
        return {asked.removeprefix("GET file ") for asked in self.asked if asked.startswith("GET file ")}


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
        hub, url = self.hub, urlsplit(self.path)
        path, query = unquote(url.path), {name: values[0] for name, values in parse_qs(url.query).items()}
        hub.asked.append(f"{self.command} {path}")
        while hub.silent.is_set():
            time.sleep(0.02)
        allowed = not hub.token or self.headers.get("authorization") == f"Bearer {hub.token}"
        if hub.status != 200 or not allowed:
            headers = {"X-Error-Message": "no"} | ({"X-Error-Code": hub.error_code} if hub.error_code else {})
            self._send(401 if not allowed else hub.status, b"", headers)
        elif path.startswith(f"/api/models/{MODEL}/tree/"):
            self._send_json([{"type": "file", "path": name, "size": len(data), "oid": oid}
                             for name, (data, oid) in self._files().items()])
        elif path.startswith(f"/api/models/{MODEL}"):
            self._send_json({"id": MODEL, "modelId": MODEL, "sha": COMMIT, "siblings": [
                {"rfilename": name, "size": len(data), "blobId": oid} for name, (data, oid) in self._files().items()]})
        elif path.startswith(f"/{MODEL}/resolve/"):
            self._send_file(path.removeprefix(f"/{MODEL}/resolve/").partition("/")[2])
        elif path == f"/api/v1/models/{MODEL}/repo/files":  # from here on ModelScope's
            self._send_json({"Code": 200, "Success": True, "Data": {"Files": [
                {"Name": name.rpartition("/")[2], "Path": name, "Type": "blob", "Size": len(data),
                 "Sha256": hashlib.sha256(data).hexdigest(), "Revision": COMMIT}
                for name, (data, _) in self._files().items() if name.startswith(query.get("Root", ""))]}})
        elif path == f"/api/v1/models/{MODEL}/repo":
            self._send_file(query["FilePath"])
        elif path == f"/api/v1/models/{MODEL}/revisions":
            self._send_json({"Code": 200, "Success": True, "Data": {"RevisionMap": {
                "Branches": [{"Revision": "master", "CreatedAt": 1}], "Tags": []}}})
        else:
            self._send(404, b"", {})

    def _files(self) -> dict[str, tuple[bytes, str]]:
        return {str(file.relative_to(self.hub.folder)): (data := file.read_bytes(), hashlib.sha1(data).hexdigest())
                for file in sorted(self.hub.folder.rglob("*")) if file.is_file()}

    def _send_file(self, name: str) -> None:
        if name not in self._files():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        data, oid = self._files()[name]
        self.hub.asked.append(f"{self.command} file {name}")
        headers, status, first = {"ETag": f'"{oid}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}, 200, 0
        if (wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))) and wanted[0] != "bytes=0-":
            first, last = int(wanted[1]), int(wanted[2] or len(data) - 1)
            self.hub.ranges.append(f"{name} {first}")
            headers["content-range"], status = f"bytes {first}-{last}/{len(data)}", 206
            data = data[first:last + 1]
        self._send(status, data, headers)

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"content-type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        hub = self.hub
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        slice_bytes = hub.bytes_per_s // 20 if hub.bytes_per_s and len(body) > 10000 else len(body) or 1
        if cut := hub.cuts > 0 and len(body) > 10000:
            hub.cuts -= 1
            body, self.close_connection = body[:len(body) // 2], True
        for start in range(0, len(body), slice_bytes):
            self.wfile.write(body[start:start + slice_bytes])
            if slice_bytes < len(body) and not cut:
                time.sleep(0.05)

    def log_message(self, format: str, *args: Any) -> None:
        pass
