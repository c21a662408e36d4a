"""What `check_tls` says of files, which names a client may have, and when a certificate ends."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from quire.app import tls
from quire.app.settings import ServeSettings
from quire.app.tls import Tls, check_tls, keep_for_workers, names_of, validity
from quire.app.watch import watch
from quire.engine.errors import ConfigError

AUTHORITY = trustme.CA()
NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


@dataclass
class Files:
    cert: Path
    key: Path

    def put(self, certificate: trustme.LeafCert) -> None:
        self.cert.write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
        self.key.write_bytes(certificate.private_key_pem.bytes())
        self.key.chmod(0o640)

    def settings(self, **more: object) -> ServeSettings:
        return ServeSettings(ssl_certfile=str(self.cert), ssl_keyfile=str(self.key), **more)  # type: ignore[arg-type]

    def problem(self, **more: object) -> str:
        with pytest.raises(ConfigError) as caught:
            check_tls(self.settings(**more))
        return str(caught.value)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    found = Files(tmp_path / "cert.pem", tmp_path / "key.pem")
    found.put(AUTHORITY.issue_cert("localhost"))
    return found


def test_a_good_pair_is_taken(files: Files) -> None:
    check_tls(files.settings())
    check_tls(ServeSettings())  # no TLS at all


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o650, 0o604, 0o642])
def test_a_key_that_others_may_read_is_refused(files: Files, mode: int) -> None:
    files.key.chmod(mode)
    assert f"mode {mode:04o}" in files.problem()
    assert "chmod" in files.problem()


@pytest.mark.parametrize("mode", [0o640, 0o600, 0o400, 0o440])
def test_modes_that_keep_others_out_are_taken(files: Files, mode: int) -> None:
    files.key.chmod(mode)
    check_tls(files.settings())


def test_missing_files_are_named_both(files: Files) -> None:
    files.cert.unlink()
    files.key.unlink()
    assert f"--ssl-certfile: {files.cert} cannot be read" in files.problem()
    assert f"--ssl-keyfile: {files.key} cannot be read" in files.problem()


def test_a_key_of_another_certificate_is_refused(files: Files) -> None:
    files.key.write_bytes(AUTHORITY.issue_cert("other").private_key_pem.bytes())
    assert f"{files.key} is not the private key of {files.cert}" in files.problem()


def test_files_that_hold_something_else_are_refused(files: Files) -> None:
    files.cert.write_text("no certificate")
    files.key.write_text("no key")
    assert f"{files.cert} holds no certificate" in files.problem()
    assert f"{files.key} holds no private key" in files.problem()


def test_a_certificate_cut_short_is_refused(files: Files) -> None:
    files.cert.write_bytes(files.cert.read_bytes()[:300])
    assert f"{files.cert} holds no certificate" in files.problem()


def test_an_encrypted_key_is_refused_without_asking_for_a_passphrase(files: Files) -> None:
    files.key.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMII=\n-----END ENCRYPTED PRIVATE KEY-----\n")
    assert "without passphrase" in files.problem()


def test_a_certificate_out_of_its_time_is_refused(files: Files) -> None:
    files.put(AUTHORITY.issue_cert("localhost", not_before=NOW - 3 * DAY, not_after=NOW - DAY))
    assert f"expired at {NOW - DAY:%Y-%m-%d}" in files.problem()
    files.put(AUTHORITY.issue_cert("localhost", not_before=NOW + DAY, not_after=NOW + 3 * DAY))
    assert "not valid before" in files.problem()


def test_ciphers_and_authorities_are_checked(files: Files, tmp_path: Path) -> None:
    assert "'nonsense' names no cipher" in files.problem(ssl_ciphers="nonsense")
    assert "cannot be read" in files.problem(ssl_cert_reqs=2, ssl_ca_certs=str(tmp_path / "none.pem"))
    (tmp_path / "ca.pem").write_text("nothing")
    assert "holds no certificate" in files.problem(ssl_cert_reqs=2, ssl_ca_certs=str(tmp_path / "ca.pem"))


def test_a_broken_file_keeps_the_old_certificate(files: Files) -> None:
    live = Tls(files.settings())
    before, not_after = live.context.current, live.not_after
    files.key.write_text("broken")
    live.reload()
    assert (live.healthy, live.context.current, live.not_after) == (False, before, not_after)
    files.put(AUTHORITY.issue_cert("localhost", not_after=NOW - DAY, not_before=NOW - 2 * DAY))
    live.reload()
    assert (live.healthy, live.context.current) == (False, before)
    files.put(AUTHORITY.issue_cert("localhost", not_after=NOW + DAY))
    live.reload()
    assert live.healthy
    assert live.context.current is not before
    assert live.not_after == int((NOW + DAY).timestamp())


def test_a_worker_begins_also_with_an_expired_certificate(files: Files) -> None:
    files.put(AUTHORITY.issue_cert("localhost", not_before=NOW - 3 * DAY, not_after=NOW - DAY))
    assert Tls(files.settings()).not_after == int((NOW - DAY).timestamp())


def test_a_worker_that_begins_while_the_files_are_broken_has_the_first_certificate(
        files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "_at_start", None)
    keep_for_workers(files.settings())
    files.cert.write_text("broken")
    late = Tls(files.settings())
    assert not late.healthy
    files.put(AUTHORITY.issue_cert("localhost"))
    late.reload()
    assert late.healthy


@contextlib.asynccontextmanager
async def followed(live: Tls, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setattr(tls, "watch", partial(watch, poll_s=0.01))
    following = asyncio.create_task(live.follow("/none"))
    try:
        yield
        assert not following.done()
    finally:
        following.cancel()


async def until(condition: Callable[[], object]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("did not happen")


async def test_files_that_nobody_foresaw_are_logged_and_followed_all_the_same(
        files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    live = Tls(files.settings())
    before, load_cert_chain = live.context.current, ssl.SSLContext.load_cert_chain

    def breaks(*_: object) -> None:
        raise MemoryError("nobody foresaw it")

    with capture_logs() as logs:
        async with followed(live, monkeypatch):
            monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", breaks)
            files.put(AUTHORITY.issue_cert("localhost", not_after=NOW + DAY))
            await until(lambda: not live.healthy)
            assert live.context.current is before
            monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load_cert_chain)
            files.put(AUTHORITY.issue_cert("localhost", not_after=NOW + 2 * DAY))
            await until(lambda: live.healthy)
    assert live.not_after == int((NOW + 2 * DAY).timestamp())
    assert any(isinstance(entry.get("exc_info"), MemoryError) for entry in logs)


async def test_a_certificate_renewed_while_a_worker_starts_is_taken(files: Files,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    live = Tls(files.settings())
    files.put(AUTHORITY.issue_cert("localhost", not_after=NOW + DAY))
    async with followed(live, monkeypatch):
        await until(lambda: live.not_after == int((NOW + DAY).timestamp()))


@pytest.mark.parametrize("gone", ["key", "ca"])
def test_a_file_that_goes_while_it_is_read_is_named(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    gone: str) -> None:
    path = files.key if gone == "key" else tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(os.fspath(tmp_path / "ca.pem"))
    read_text = Path.read_text

    def read_then_lose(self: Path, *arguments: Any) -> str:
        text = read_text(self, *arguments)
        if self == path:
            self.unlink()
        return text

    monkeypatch.setattr(Path, "read_text", read_then_lose)
    assert f"{path} cannot be read: No such file" in files.problem(ssl_cert_reqs=2,
                                                                   ssl_ca_certs=str(tmp_path / "ca.pem"))


@given(st.datetimes(datetime.datetime(1971, 1, 1), datetime.datetime(2199, 1, 1)), st.integers(1, 10**9))
def test_validity_reads_what_was_signed(begin: datetime.datetime, lasts_s: int) -> None:
    begin = begin.replace(microsecond=0, tzinfo=datetime.timezone.utc)
    end = begin + datetime.timedelta(seconds=lasts_s)
    certificate = AUTHORITY.issue_cert("h", not_before=begin, not_after=end)
    der = ssl.PEM_cert_to_DER_cert(certificate.cert_chain_pems[0].bytes().decode())
    assert validity(der) == (begin.timestamp(), end.timestamp())


@given(st.binary(max_size=400))
def test_broken_certificates_are_refused_not_obeyed(der: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        validity(der)


def test_names_are_compared_in_one_spelling(files: Files, tmp_path: Path) -> None:
    AUTHORITY.cert_pem.write_to_path(os.fspath(tmp_path / "ca.pem"))
    live = Tls(files.settings(ssl_cert_reqs=2, ssl_ca_certs=str(tmp_path / "ca.pem"), ssl_client_names=[
        "Gateway.Example", "spiffe://a/Web", "2001:db8:0::1", "ops@example.org"]))
    certificate = {"subjectAltName": (("DNS", "x"), ("DirName", ((("commonName", "gateway.example"),),)))}
    assert not live.names_allowed(names_of(certificate))
    assert not live.names_allowed(names_of({}))
    assert not live.names_allowed(names_of(None))
    for kind, name in (("DNS", "gateway.EXAMPLE"), ("URI", "spiffe://a/Web"), ("email", "Ops@example.org"),
                       ("IP Address", "2001:DB8:0:0:0:0:0:1\n")):
        assert live.names_allowed(names_of({"subjectAltName": (("DNS", "x"), (kind, name))}))
    assert not live.names_allowed(names_of({"subjectAltName": (("URI", "spiffe://a/web"),)}))
