"""The shipped nginx configuration: before a small server of this test's own, and (slow) before the real one."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from quire.app.errors import ApiError
from tests.deploy.run_nginx import SHIPPED, Nginx, configured, has_nginx, shipped_nginx
from tests.e2e.server import KEY, Server, free_port, serving, until

pytestmark = pytest.mark.skipif(not has_nginx(), reason="nginx is not installed (apt-get install nginx)")
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
REFUSED = threading.Event()  # /refuse was answered, without its body
HELD, RELEASED = threading.Semaphore(0), threading.Event()  # requests for /hold that came, and that they may go


class Upstream(BaseHTTPRequestHandler):
    """Says what it was asked. /events sends its second event only when told to; /busy is a 503 of Quire's own."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        if self.path == "/refuse":
            self._answer(401, {})
            REFUSED.set()
            self.connection.shutdown(socket.SHUT_WR)
            while self.rfile.read1():  # as Quire: whoever closes before all is read may take the answer back
                pass
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/events":
            RELEASED.clear()
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(b"data: 1\n\n")
            self.wfile.flush()
            RELEASED.wait(10)
            self.wfile.write(b"data: 2\n\n")
            self.close_connection = True
            return
        if self.path == "/hold":
            HELD.release()
            RELEASED.wait(10)
        self._answer(503 if self.path == "/busy" else 200, {
            "path": self.path, "headers": dict(self.headers.items()), "length": len(body),
            "port": self.client_address[1]})

    do_GET = do_POST

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        with contextlib.suppress(ConnectionError):  # nginx gave up waiting
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    RELEASED.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def proxy(upstream: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    with shipped_nginx(upstream, tmp_path_factory.mktemp("nginx")) as nginx:
        yield nginx


@pytest.fixture
def http(proxy: Nginx) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=proxy.url, verify=proxy.trust, timeout=20) as client:
        yield client


def error_of(reply: httpx.Response) -> dict[str, Any]:
    """OpenAI's error object, with the type that Quire itself gives the status."""
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["strict-transport-security"]
    error: dict[str, Any] = reply.json()["error"]
    own = json.loads(ApiError(503 if reply.status_code == 502 else reply.status_code, "").body())["error"]
    assert set(error) == set(own) and error["type"] == own["type"] and error["code"] == reply.status_code
    assert error["message"].endswith(".")
    return error


def test_nginx_takes_the_configuration_without_a_warning(tmp_path: Path) -> None:
    config = configured(tmp_path, "127.0.0.1:8000", free_port())
    run = subprocess.run(["nginx", "-p", str(tmp_path), "-c", str(config), "-t"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "warn" not in run.stderr, run.stderr


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="Debian's package bubblewrap is missing")
def test_unchanged_it_runs_as_compose_runs_it(tmp_path: Path) -> None:
    """As user 101 without capabilities, nothing to write to but /tmp, the name quire only in /etc/hosts."""
    configured(tmp_path, "127.0.0.1:8000", free_port())  # for the certificate
    (tmp_path / "hosts").write_text("172.30.86.3 quire\n")
    nginx = yaml.safe_load((SHIPPED.parents[1] / "compose.yaml").read_text())["services"]["nginx"]
    run = subprocess.run([
        "bwrap", "--unshare-all", "--uid", "101", "--gid", "101", "--cap-drop", "ALL", "--ro-bind", "/", "/",
        "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--tmpfs", "/run", "--tmpfs", "/etc/nginx",
        "--ro-bind", str(SHIPPED), "/etc/nginx/quire", "--ro-bind", str(tmp_path / "hosts"), "/etc/hosts",
        "--ro-bind", str(tmp_path / "tls_certificate"), "/run/secrets/tls_certificate",
        "--ro-bind", str(tmp_path / "tls_key"), "/run/secrets/tls_key", *nginx["entrypoint"], "-t"],
        capture_output=True, text=True)
    if "bwrap:" in run.stderr:
        pytest.skip(f"no sandbox on this machine: {run.stderr.strip()}")
    assert run.returncode == 0, run.stderr
    assert "warn" not in run.stderr and "emerg" not in run.stderr


def test_a_request_arrives_whole_and_with_the_clients_own_address(http: httpx.Client) -> None:
    reply = http.post("/v1/completions?a=1", content=b"x" * (2 << 20), headers={
        "x-forwarded-for": "203.0.113.9", "x-forwarded-proto": "gopher", "authorization": "Bearer k"})
    seen = reply.json()
    headers = {name.lower(): value for name, value in seen["headers"].items()}
    assert seen["path"] == "/v1/completions?a=1" and seen["length"] == 2 << 20
    assert headers["x-forwarded-for"] == "127.0.0.1", "what the client claims is not passed on"
    assert headers["x-forwarded-proto"] == "https" and headers["authorization"] == "Bearer k"
    assert reply.headers["strict-transport-security"].startswith("max-age=")
    assert "/" not in reply.headers["server"], "no version"


def test_a_body_that_is_still_coming_fills_no_disk_and_the_server_refuses_it_early(http: httpx.Client) -> None:
    def slowly() -> Iterator[bytes]:
        yield b"x" * (4 << 20)
        assert REFUSED.wait(10), "the server has heard nothing of the request"
        yield b"x"

    REFUSED.clear()
    assert http.post("/refuse", content=slowly()).status_code == 401


def test_connections_to_the_server_are_kept(http: httpx.Client) -> None:
    assert len({http.get("/v1/models").json()["port"] for _ in range(6)}) < 6


def test_events_are_not_held_back(http: httpx.Client) -> None:
    with http.stream("POST", "/events") as reply:
        chunks = reply.iter_raw()
        assert next(chunks) == b"data: 1\n\n", "arrived while the server waits"
        RELEASED.set()
        assert b"".join(chunks) == b"data: 2\n\n"


@pytest.mark.parametrize("path", [
    "/metrics", "/metrics?x=1", "/admin", "/admin/", "/admin/keys", "//metrics", "/%6detrics", "/v1/../admin/status",
    "/./metrics", "/admin%2Fkeys"])
def test_metrics_and_administration_cannot_be_reached(proxy: Nginx, path: str) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port)) as plain, proxy.trust.wrap_socket(
            plain, server_hostname="localhost") as connection:  # httpx would tidy the path up
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 404 "), answer
    assert b'"type":"NotFoundError"' in answer


def test_a_body_too_large_is_refused_as_openai_would(http: httpx.Client) -> None:
    reply = http.post("/v1/completions", content=b"x" * ((16 << 20) + 1))
    assert reply.status_code == 413
    assert "16 MiB" in error_of(reply)["message"]


def test_a_head_too_large_is_refused_as_openai_would(http: httpx.Client) -> None:
    for path, header in (("/" + "x" * 20000, "x"), ("/v1/models", "x" * 20000)):
        reply = http.get(path, headers={"x-long": header})
        assert reply.status_code == 431
        error_of(reply)


def test_what_is_no_request_is_refused_as_openai_would(proxy: Nginx) -> None:
    for scheme, host in (("http", "localhost"), ("https", "local host")):  # in clear; not a name
        reply = httpx.get(f"{scheme}://localhost:{proxy.port}/v1/models", headers={"host": host}, verify=proxy.trust)
        assert reply.status_code == 400
        error_of(reply)
    assert httpx.get(f"{proxy.url}/_quire/bad_request", verify=proxy.trust).status_code == 404


def test_the_servers_own_refusals_pass_as_they_are(http: httpx.Client) -> None:
    reply = http.get("/busy")
    assert reply.status_code == 503 and reply.json()["path"] == "/busy"


def test_too_many_requests_at_once_are_refused_as_openai_would(upstream: str, tmp_path: Path) -> None:
    limit = "limit_conn quire_address 256"
    with shipped_nginx(upstream, tmp_path, {limit: "limit_conn quire_address 2"}) as nginx, httpx.Client(
            base_url=nginx.url, verify=nginx.trust, timeout=20) as http, ThreadPoolExecutor(2) as pool:
        RELEASED.clear()
        held = [pool.submit(http.get, "/hold") for _ in range(2)]
        try:
            assert all(HELD.acquire(timeout=10) for _ in held)
            reply = http.get("/v1/models")
        finally:
            RELEASED.set()
        assert reply.status_code == 429
        assert [future.result().status_code for future in held] == [200, 200]
    error_of(reply)
    assert reply.headers["retry-after"] == "1"


def test_a_server_that_is_away_is_told_as_openai_would(tmp_path: Path) -> None:
    with shipped_nginx(f"127.0.0.1:{free_port()}", tmp_path) as nginx:
        for _ in range(3):  # the third as the first: it is tried each time
            reply = httpx.get(nginx.url + "/v1/models", verify=nginx.trust)
            assert reply.status_code == 502
            error_of(reply)
            assert reply.headers["retry-after"]
        until(lambda: len(nginx.log()) == 3)
        assert {line["upstream_status"] for line in nginx.log()} == {"502"}


def test_what_nginx_itself_cannot_do_has_one_status_in_head_and_body(upstream: str, tmp_path: Path) -> None:
    with shipped_nginx(upstream, tmp_path, {"    location / {\n": "    location / {\n        return 500;\n"}) as nginx:
        reply = httpx.get(nginx.url + "/v1/a", verify=nginx.trust)
    assert reply.status_code == 503
    error_of(reply)


def test_a_server_that_does_not_answer_in_time_is_told_as_openai_would(upstream: str, tmp_path: Path) -> None:
    RELEASED.clear()
    with shipped_nginx(upstream, tmp_path, {"proxy_read_timeout 3660s": "proxy_read_timeout 1s"}) as nginx:
        reply = httpx.get(nginx.url + "/hold", verify=nginx.trust, timeout=20)
    RELEASED.set()
    assert HELD.acquire(timeout=10)
    assert reply.status_code == 504
    error_of(reply)


def test_the_log_is_json_without_query_strings_and_keys(http: httpx.Client, proxy: Nginx) -> None:
    http.get("/v1/logged?secret=1", headers={"authorization": "Bearer very-secret"})
    until(lambda: any(line["path"] == "/v1/logged" for line in proxy.log()))
    line = next(line for line in proxy.log() if line["path"] == "/v1/logged")
    assert line["status"] == 200 and line["client"] == "127.0.0.1" and line["tls"] in {"TLSv1.2", "TLSv1.3"}
    assert "secret" not in (proxy.directory / "out").read_text()


def test_only_tls_1_2_and_1_3_are_spoken(proxy: Nginx) -> None:
    def handshake(version: ssl.TLSVersion) -> str | None:
        context = ssl.create_default_context(cafile=str(proxy.authority))
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
        with socket.create_connection(("127.0.0.1", proxy.port)) as plain, context.wrap_socket(
                plain, server_hostname="localhost") as connection:
            return connection.version()

    assert handshake(ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    assert handshake(ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    with pytest.warns(DeprecationWarning, match="TLSv1_1"), pytest.raises(ssl.SSLError):
        handshake(ssl.TLSVersion.TLSv1_1)


@needs_curl
def test_http_2_is_spoken(proxy: Nginx) -> None:
    assert curl(proxy, "/v1/models", "-o", "/dev/null", "-w", "%{http_version} %{http_code}") == "2 200"


def curl(proxy: Nginx, path: str, *options: str) -> str:
    run = subprocess.run(["curl", "--http2", "-sS", "--max-time", "30", "--cacert", str(proxy.authority),
                          *options, proxy.url + path], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_limits_are_not_below_the_servers_own() -> None:
    from quire.app.settings import ServeSettings

    own, text = ServeSettings(), (SHIPPED / "quire.conf").read_text()
    assert f"client_max_body_size {own.max_body_bytes >> 20}m;" in text
    assert f"client_header_timeout {own.header_timeout:.0f}s;" in text
    assert f"client_body_timeout {own.body_timeout:.0f}s;" in text
    read_timeout = int(text.partition("proxy_read_timeout ")[2].partition("s")[0])
    assert read_timeout > own.request_timeout and read_timeout > own.sse_ping_interval
    kept = int((SHIPPED / "upstream.conf").read_text().partition("keepalive_timeout ")[2].partition("s")[0])
    assert kept < own.keep_alive_timeout


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Nginx, Server]]:
    with serving("--host", "127.0.0.1", "-asc", "1", "--admin-port", "0",
                 "--forwarded-allow-ips", "127.0.0.1") as server:
        directory = tmp_path_factory.mktemp("nginx")
        with shipped_nginx(server.url.removeprefix("http://"), directory) as nginx:
            yield nginx, server


@pytest.mark.slow
@needs_curl
def test_the_real_server_behind_it(real: tuple[Nginx, Server]) -> None:
    nginx, server = real
    key = ("-H", f"authorization: Bearer {KEY}", "-H", "content-type: application/json")
    chat = {"messages": [{"role": "user", "content": "Count to ten."}], "max_tokens": 40, "min_tokens": 40}

    answer = json.loads(curl(nginx, "/v1/chat/completions", *key, "-d", json.dumps(chat)))
    assert answer["choices"][0]["message"]["content"]
    assert curl(nginx, "/readyz", "-o", "/dev/null", "-w", "%{http_version} %{http_code}") == "2 200"
    assert json.loads(curl(nginx, "/v1/models"))["error"]["code"] == "invalid_api_key"
    for path in ("/metrics", "/admin/status"):
        assert json.loads(curl(nginx, path, *key))["error"]["code"] == 404
    big = nginx.directory / "big"
    big.write_bytes(b"x" * (17 << 20))
    assert json.loads(curl(nginx, "/v1/completions", *key, "--data-binary", f"@{big}"))["error"]["code"] == 413

    big.write_bytes(b"x" * (15 << 20))  # larger than what the server reads before it refuses
    assert json.loads(curl(nginx, "/v1/completions", "--data-binary", f"@{big}"))["error"]["code"] == "invalid_api_key"

    # A stream over HTTP/2, each event as it is made.
    stream = subprocess.Popen(["curl", "--http2", "-sSN", "--max-time", "60", "--cacert", str(nginx.authority), *key,
                               "-d", json.dumps(chat | {"stream": True}), nginx.url + "/v1/chat/completions"],
                              stdout=subprocess.PIPE)
    assert stream.stdout is not None
    begun = time.monotonic()
    arrivals = [(time.monotonic() - begun, line) for line in stream.stdout if line.startswith(b"data: ")]
    stream.stdout.close()
    assert stream.wait() == 0 and arrivals[-1][1] == b"data: [DONE]\n"
    assert len(arrivals) >= 20 and arrivals[0][0] < 0.6 * arrivals[-1][0]

    until(lambda: [event for event in server.events("request") if event["path"] == "/v1/chat/completions"])
    assert {event["client"] for event in server.events("request")} == {"127.0.0.1"}
