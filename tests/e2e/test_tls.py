"""A server that asks for client certificates by name, scanned, refused and given new certificates while it streams."""

from __future__ import annotations

import datetime
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.e2e.server import KEY, Server, serving, until
from tests.raw_http import send

HEADER_TIMEOUT_S = 2


@dataclass
class Secured:
    server: Server
    directory: Path
    authority: trustme.CA
    clients: dict[str, ssl.SSLContext] = field(default_factory=dict)

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", int(self.server.url.rsplit(":", 1)[1])

    def client(self, *names: str, authority: trustme.CA | None = None) -> ssl.SSLContext:
        """Trusts the server; bears a certificate with these names, if any."""
        context = ssl.create_default_context(cadata=self.authority.cert_pem.bytes().decode())
        if names:
            (authority or self.authority).issue_cert(*names).configure_cert(context)
        return context

    def get(self, path: str, context: ssl.SSLContext | None = None) -> tuple[int, bytes, bytes]:
        """Status, body, and the certificate that the server showed."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.address[1], timeout=20,
                                                 context=context or self.client("gateway.example"))
        try:
            connection.request("GET", path, headers={"authorization": f"Bearer {KEY}"})
            shown = connection.sock.getpeercert(binary_form=True)
            reply = connection.getresponse()
            return reply.status, reply.read(), shown
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        text = self.get("/metrics")[1].decode()
        return next(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))

    def put(self, certificate: trustme.LeafCert) -> None:
        put(self.directory, certificate)


def put(directory: Path, certificate: trustme.LeafCert) -> None:
    for name, content in (("cert.pem", b"".join(pem.bytes() for pem in certificate.cert_chain_pems)),
                          ("key.pem", certificate.private_key_pem.bytes())):
        pending = directory / f"{name}.new"
        pending.write_bytes(content)
        pending.chmod(0o640)
        pending.replace(directory / name)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    put(directory, authority.issue_cert("localhost", "127.0.0.1"))
    authority.cert_pem.write_to_path(os.fspath(directory / "ca.pem"))
    with serving("--ssl-certfile", f"{directory}/cert.pem", "--ssl-keyfile", f"{directory}/key.pem",
                 "--ssl-ca-certs", f"{directory}/ca.pem", "--ssl-cert-reqs", "2",
                 "--ssl-client-names", "gateway.example", "10.9.8.7",
                 "--header-timeout", str(HEADER_TIMEOUT_S)) as server:
        yield Secured(server, directory, authority)


def test_ready_with_client_certificates_required(secured: Secured) -> None:
    """The launcher asked through the socket that needs none, and the address says https."""
    assert secured.server.url.startswith("https://127.0.0.1:")


def test_sslscan_finds_nothing(secured: Secured) -> None:
    if shutil.which("sslscan") is None:
        pytest.skip("sslscan is not installed (apt-get install sslscan)")
    pem = secured.directory / "client.pem"
    secured.authority.issue_cert("gateway.example").private_key_and_cert_chain_pem.write_to_path(os.fspath(pem))
    report = subprocess.run(
        ["sslscan", "--xml=-", f"--certs={pem}", f"--pk={pem}", "{}:{}".format(*secured.address)],
        check=True, capture_output=True, timeout=90).stdout
    scan = ElementTree.fromstring(report)
    offered = {(p.get("type"), p.get("version")) for p in scan.iter("protocol") if p.get("enabled") == "1"}
    assert offered == {("tls", "1.2"), ("tls", "1.3")}
    ciphers = list(scan.iter("cipher"))
    assert {c.get("sslversion") for c in ciphers} == {"TLSv1.2", "TLSv1.3"}
    for cipher in ciphers:
        name = cipher.get("cipher", "")
        assert cipher.get("strength") in ("acceptable", "strong"), name
        assert "GCM" in name or "POLY1305" in name, name
        assert name.startswith(("TLS_", "ECDHE-")), name
    assert [h.get("vulnerable") for h in scan.iter("heartbleed")].count("0") == len(list(scan.iter("heartbleed"))) > 0
    assert all(r.get("supported") == "0" for r in scan.iter("renegotiation"))
    assert all(c.get("supported") == "0" for c in scan.iter("compression"))


@pytest.mark.parametrize("name", ["gateway.example", "GATEWAY.example", "10.9.8.7"])
def test_a_named_client_comes_in(secured: Secured, name: str) -> None:
    assert secured.get("/healthz", secured.client(name))[0] == 200


def test_another_client_of_the_same_authority_is_told_no(secured: Secured) -> None:
    status, body, _ = secured.get("/v1/models", secured.client("stranger.example"))
    assert status == 403
    assert json.loads(body)["error"]["type"] == "PermissionDeniedError"
    until(lambda: secured.server.events("client certificate refused"))
    assert secured.server.events("client certificate refused")[0]["names"] == ["stranger.example"]
    assert secured.metric('quire:requests_rejected_total{reason="client_certificate"}') >= 1


def test_no_certificate_and_a_foreign_one_do_not_get_through_the_handshake(secured: Secured) -> None:
    for context in (secured.client(), secured.client("gateway.example", authority=trustme.CA())):
        assert not _gets_in(secured, context)


def test_old_tls_is_refused(secured: Secured) -> None:
    context = secured.client("gateway.example")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLS"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    assert not _gets_in(secured, context)


def test_plain_http_is_not_answered(secured: Secured) -> None:
    answer = send(secured.address, b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
    assert answer.closed
    assert b"200" not in answer.raw


def test_a_handshake_that_does_not_go_on_is_cut(secured: Secured) -> None:
    begun = time.monotonic()
    with socket.create_connection(secured.address, timeout=20) as client:
        client.sendall(b"\x16\x03\x01")
        assert client.recv(1) == b""
    assert time.monotonic() - begun < HEADER_TIMEOUT_S + 8


def test_slow_heads_are_cut_under_tls_too(secured: Secured) -> None:
    answer = send(secured.address, b"GET / HTTP/1.1\r\n", tls=secured.client("gateway.example"), wait_s=20, quiet_s=10)
    assert answer.statuses == [408]
    assert answer.closed


def test_exec_probes_need_no_certificate(secured: Secured) -> None:
    run_dir = _run_dir(secured.server)
    assert (Path(run_dir) / "probe.sock").stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{run_dir}/probe.sock")
        client.sendall(b"GET /readyz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200 ")


def _run_dir(server: Server) -> str:
    worker = server.pids()["workers"][0]
    environment = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
    return next(entry.partition(b"=")[2].decode() for entry in environment if entry.startswith(b"QUIRE_RUN_DIR="))


def test_a_new_certificate_is_taken_without_dropping_a_stream(secured: Secured) -> None:
    before = secured.get("/healthz")[2]
    stream = _Stream(secured, max_tokens=100)
    assert stream.next()
    end = datetime.datetime(2040, 1, 2, tzinfo=datetime.timezone.utc)
    secured.put(secured.authority.issue_cert("localhost", "127.0.0.1", not_after=end))
    until(lambda: secured.get("/healthz")[2] != before)
    seen_before_change = stream.num_events
    assert stream.finish() > seen_before_change
    assert secured.metric("quire:certificate_not_after_seconds") == end.timestamp()


def test_broken_files_keep_the_certificate_and_show(secured: Secured) -> None:
    before = secured.get("/healthz")[2]
    good = (secured.directory / "key.pem").read_bytes()
    assert secured.metric("quire:certificate_ok") == 1
    (secured.directory / "key.pem").write_bytes(b"broken")
    until(lambda: secured.server.events("certificate not loaded, the one before stays in use"))
    assert secured.metric("quire:certificate_ok") == 0
    assert secured.get("/healthz")[2] == before
    (secured.directory / "key.pem").write_bytes(good)
    until(lambda: secured.metric("quire:certificate_ok") == 1)


def test_an_authority_that_is_taken_out_is_out(secured: Secured) -> None:
    authorities, other = secured.directory / "ca.pem", trustme.CA()
    old = secured.client("gateway.example")
    before = authorities.read_bytes()
    authorities.write_bytes(other.cert_pem.bytes())
    try:
        until(lambda: _gets_in(secured, secured.client("gateway.example", authority=other)))
        assert not _gets_in(secured, old)
    finally:
        authorities.write_bytes(before)
    until(lambda: _gets_in(secured, old))


def _gets_in(secured: Secured, context: ssl.SSLContext) -> bool:
    try:
        return secured.get("/healthz", context)[0] == 200
    except (ssl.SSLError, ConnectionError):
        return False


def test_sighup_reads_certificates_again(secured: Secured) -> None:
    num_loads = len(secured.server.events("certificate loaded"))
    secured.server.process.send_signal(signal.SIGHUP)
    until(lambda: len(secured.server.events("certificate loaded")) > num_loads)


@pytest.mark.parametrize("command", ["serve", "check"])
def test_an_open_key_keeps_the_server_from_starting(tmp_path: Path, command: str) -> None:
    put(tmp_path, trustme.CA().issue_cert("localhost"))
    (tmp_path / "key.pem").chmod(0o644)
    ended = subprocess.run(
        [sys.executable, "-m", "quire", command, "--ssl-certfile", f"{tmp_path}/cert.pem",
         "--ssl-keyfile", f"{tmp_path}/key.pem"], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert f"--ssl-keyfile: {tmp_path}/key.pem is open to others (mode 0644)" in ended.stderr


class _Stream:
    """A completion's server-sent events, read as they come."""

    def __init__(self, secured: Secured, max_tokens: int) -> None:
        self._connection = http.client.HTTPSConnection("127.0.0.1", secured.address[1], timeout=60,
                                                       context=secured.client("gateway.example"))
        body: dict[str, Any] = {"model": "smollm2-135m-instruct", "prompt": "Once", "max_tokens": max_tokens,
                                "min_tokens": max_tokens, "stream": True}
        self._connection.request("POST", "/v1/completions", json.dumps(body),
                                 {"authorization": f"Bearer {KEY}", "content-type": "application/json"})
        self._reply = self._connection.getresponse()
        assert self._reply.status == 200
        self.num_events = 0

    def next(self) -> bytes:
        line = b"\n"
        while line == b"\n":
            line = self._reply.readline()
        self.num_events += line.startswith(b"data: ")
        return line

    def finish(self) -> int:
        """Reads to the end; the number of events in all."""
        while self.next() != b"data: [DONE]\n":
            pass
        self._connection.close()
        return self.num_events
