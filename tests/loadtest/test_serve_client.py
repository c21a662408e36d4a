"""The HTTP load client against a tiny real server on the loopback that speaks the wire format."""

from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from quire.engine.errors import ConfigError
from quire.loadtest import serve_client


class Server(BaseHTTPRequestHandler):
    """Streams as many chunks as tokens were asked for; refuses what the paths /refuse and /keyed are asked."""

    prompts: ClassVar[list[list[int]]] = []
    models: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.send_response(401 if self.path.startswith("/keyed") else 200)
        self.end_headers()
        self.wfile.write(b'{"error": {"message": "who are you?"}, "data": [{"id": "first"}, {"id": "second"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.prompts.append(body["prompt"])
        self.models.append(body["model"])
        if self.path.startswith("/refuse"):
            self.send_response(503)
            self.end_headers()
            self.wfile.write(b"overloaded")
            return
        if self.path.startswith("/keyed"):
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b'{"error": {"message": "who are you?"}}')
            return
        self.send_response(200)
        self.end_headers()
        if self.path.startswith("/strange"):
            self._frame([])
            return
        for _ in range(body["max_tokens"]):
            self._frame({"choices": [{"text": "x"}]})
        if not self.path.startswith("/cut"):
            self._frame({"choices": [], "usage": {"completion_tokens": body["max_tokens"]}})
            self.wfile.write(b"data: [DONE]\n\n")

    def _frame(self, chunk: object) -> None:
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


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(serve_client, "START_AFTER_S", 0.0)  # that clients begin together matters to figures alone


def run(capsys, url: str) -> tuple[int, dict, str]:
    code = serve_client.main(["--url", url, "--model", "m", "--workload", "sharegpt", "--num-requests", "3",
                              "--clients", "2"])
    printed, told = capsys.readouterr()
    return code, json.loads(printed), told


def test_every_token_is_counted_and_no_request_fails(capsys, url):
    code, result, told = run(capsys, url)
    assert (code, result["requests"], result["failed"], told) == (0, 3, 0, "")
    _, output_lens = serve_client.workloads.prompts("sharegpt", 32000, 3)
    assert result["out_tokens"] == sum(output_lens)
    assert result["ttft_ms"]["p50"] > 0 and result["itl_ms"]["p99"] is not None


@pytest.mark.parametrize(("path", "reason", "advice"), [
    ("/refuse", "503 overloaded", ""), ("/cut", "ended early", ""), ("/strange", "an event that cannot be read", ""),
    ("/keyed", "401 who are you?", " -> give the key with --api-key, or as VLLM_API_KEY")])
def test_a_failed_request_is_reported_and_fails_the_run(capsys, url, path, reason, advice):
    code, result, told = run(capsys, url + path)
    assert (code, result["failed"]) == (1, 3)
    assert reason in result["first_error"]
    assert told == f"quire bench serve: 3 of 3 requests failed; the first: {result['first_error']}{advice}\n"


def test_a_server_that_is_not_there_is_said_to_be_so(capsys):
    with socket.socket() as deaf:  # bound, and nobody listens
        deaf.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        code, _, told = run(capsys, url)
    assert code == 1
    assert told == f"quire bench serve: 3 of 3 requests failed; the first: {url} does not answer: Connection refused\n"


def test_several_rates_are_measured_on_prompts_of_their_own_and_reported(capsys, url, tmp_path):
    report = tmp_path / "report.html"
    Server.prompts.clear()
    code = serve_client.main(["--url", url, "--model", "m", "--num-requests", "3", "--clients", "1", "--rate", "1000",
                              "2000", "--html", str(report)])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (code, [line["rate"] for line in lines]) == (0, [1000.0, 2000.0])
    assert len({tuple(prompt[:16]) for prompt in Server.prompts}) == 6
    assert sorted(map(len, Server.prompts[:3])) == sorted(map(len, Server.prompts[3:]))
    assert report.read_text().count("<svg") == 5 + 2 * 6


def test_prompts_that_begin_alike_do_so_at_every_rate():
    ids, _ = serve_client.workloads.prompts("prefix", 32000, 2)
    first, second = serve_client._others(ids, 3, serve_client.workloads.top_id(32000))
    assert first[:2048] == second[:2048] != ids[0][:2048] and first[2048:] != second[2048:]
    assert min(first) >= serve_client.workloads.LOWEST_ID and max(first) < serve_client.workloads.HIGHEST_ID


def test_the_address_may_be_given_as_to_other_clients():
    for url in ("http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/", "h:1"):
        assert serve_client._parse(["--model", "m", "--url", url]).url == "http://h:1"


@pytest.mark.parametrize("flags", [
    ["--url", "ftp://h:1"], ["--num-requests", "0"], ["--clients", "0"], ["--rate", "-1"]])
def test_flags_that_make_no_sense_are_refused_by_name(capsys, flags):
    with pytest.raises(SystemExit):
        serve_client.main(["--model", "m", *flags])
    assert f"{flags[0]}: {flags[1]}" in capsys.readouterr().err


def test_without_a_model_it_is_the_servers_first(capsys, url):
    assert serve_client.main(["--url", url, "--num-requests", "1"]) == 0
    assert Server.models[-1] == "first"
    with pytest.raises(ConfigError, match=r"who are you\? -> give the key with --api-key"):
        serve_client.main(["--url", f"{url}/keyed", "--num-requests", "1"])


def test_quantiles_are_the_middle_and_the_worst_hundredth():
    assert serve_client.quantiles_ms([i / 1000 for i in range(1, 101)]) == {"p50": 51.0, "p99": 100.0}
    assert serve_client.quantiles_ms([]) == {"p50": None, "p99": None}
