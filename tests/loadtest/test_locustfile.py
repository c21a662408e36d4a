"""The Locust user in a real headless run (gevent patches the process it runs in, so it runs in one of its own)."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "loadtest" / "locustfile.py"


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(json.dumps({"data": [{"id": "m"}]}).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        deltas = [{"role": "assistant", "content": ""}, {"content": "a"}, {"content": "b"}, {}]
        frames = [json.dumps({"choices": [{"delta": delta}]}) for delta in deltas]
        self._answer("".join(f"data: {frame}\n\n" for frame in [*frames, "[DONE]"]).encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def host():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def locust(host: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "locust", "-f", str(FILE), "--headless", "--host", host, "--users",
                           "2", "--spawn-rate", "2", "--run-time", "2s", "--stop-timeout", "2"],
                          env={"PATH": "/usr/bin:/bin", **environment}, text=True, capture_output=True, timeout=60)


def test_token_times_are_reported_and_a_kept_limit_passes(host):
    done = locust(host, QUIRE_SLO_TTFT_P95_MS="60000")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "time to first token" in done.stderr and "inter-token latency" in done.stderr


def test_a_missed_limit_fails_the_run(host):
    done = locust(host, QUIRE_SLO_TTFT_P95_MS="0")
    assert done.returncode == 1
    assert "SLO missed: p95 time to first token" in done.stdout


def test_a_server_that_is_not_there_fails_the_run():
    done = locust("http://127.0.0.1:9", QUIRE_MODEL="m")
    assert done.returncode == 1
    assert "no token was served" in done.stdout
