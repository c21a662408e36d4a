"""The HTTP load client against a tiny real server on the loopback that speaks the wire format."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from loadtest import serve_client


class Server(BaseHTTPRequestHandler):
    """Streams as many chunks as tokens were asked for; refuses what the path /refuse is asked."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path.startswith("/refuse"):
            self.send_response(503)
            self.end_headers()
            self.wfile.write(b"overloaded")
            return
        self.send_response(200)
        self.end_headers()
        for _ in range(body["max_tokens"]):
            self._frame({"choices": [{"text": "x"}]})
        if not self.path.startswith("/cut"):
            self._frame({"choices": [], "usage": {"completion_tokens": body["max_tokens"]}})
            self.wfile.write(b"data: [DONE]\n\n")

    def _frame(self, chunk: dict) -> None:
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run(capsys, url: str) -> tuple[int, dict]:
    code = serve_client.main(["--url", url, "--model", "m", "--workload", "sharegpt", "--num-requests", "3",
                              "--clients", "2"])
    return code, json.loads(capsys.readouterr().out)


def test_every_token_is_counted_and_no_request_fails(capsys, url):
    code, result = run(capsys, url)
    assert (code, result["requests"], result["failed"]) == (0, 3, 0)
    _, output_lens = serve_client.workloads.prompts("sharegpt", 32000, 3)
    assert result["out_tokens"] == sum(output_lens)
    assert result["ttft_ms"]["p50"] > 0 and result["itl_ms"]["p99"] is not None


@pytest.mark.parametrize(("path", "reason"), [("/refuse", "503 overloaded"), ("/cut", "ended early")])
def test_a_failed_request_is_reported_and_fails_the_run(capsys, url, path, reason):
    code, result = run(capsys, url + path)
    assert (code, result["failed"]) == (1, 3)
    assert reason in result["first_error"]


def test_quantiles_are_the_middle_and_the_worst_hundredth():
    assert serve_client.quantiles_ms([i / 1000 for i in range(1, 101)]) == {"p50": 51.0, "p99": 100.0}
    assert serve_client.quantiles_ms([]) == {"p50": None, "p99": None}
