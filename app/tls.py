"""TLS as an operator sets it: a certificate that may be replaced while the server runs, and who may come in with one.

Refuses to know sockets and HTTP. The command line checks the files before anything starts (`check_tls`); every HTTP
worker has a `Tls`, made by its `Service`, and gives its context to the listening sockets.
"""

from __future__ import annotations

import calendar
import ipaddress
import os
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from quire.app.settings import ServeSettings
from quire.app.watch import stamp, watch
from quire.engine.errors import ConfigError

log = structlog.get_logger(__name__)

# For TLS 1.2: forward secrecy and authenticated encryption. OpenSSL's own list for TLS 1.3 has nothing else.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
KEY_MODE = 0o640  # the most that a key file may allow to its group and to others
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_UTC_TIME = 0x17
_EXPLICIT_VERSION = 0xA0


def check_tls(settings: ServeSettings) -> None:
    """Raises ConfigError with everything that keeps these settings from serving TLS, if they want to."""
    if settings.ssl_certfile is not None:
        _load(settings).require_valid(time.time())


# As gunicorn's master found it: what a worker has that begins while the files are broken.
_at_start: _Loaded | None = None


def keep_for_workers(settings: ServeSettings) -> None:
    """Called in gunicorn's master, before its workers are forked."""
    global _at_start
    if settings.ssl_certfile is not None:
        _at_start = _load(settings)


class Tls:
    """The certificate in use. `healthy` is False while the files on disk could not be taken."""

    def __init__(self, settings: ServeSettings) -> None:
        """Raises ConfigError. Takes a certificate that has expired: a worker that begins anew serves what there is."""
        self._settings = settings
        self.context = _LiveContext(ssl.PROTOCOL_TLS_SERVER)
        self.healthy = True
        self._files = [path for path in (settings.ssl_certfile, settings.ssl_keyfile, settings.ssl_ca_certs) if path]
        self._seen = [stamp(path) for path in self._files]  # before they are read: none that comes later is missed
        try:
            loaded = _load(settings)
        except Exception as error:
            if _at_start is None:
                raise
            loaded = _at_start
            self._not_taken(error)
        self.context.current = loaded.context
        self.not_after = loaded.not_after  # unix seconds
        self._client_names = None if settings.ssl_client_names is None else set(map(_folded, settings.ssl_client_names))

    @classmethod
    def of(cls, settings: ServeSettings) -> Tls | None:
        return None if settings.ssl_certfile is None else cls(settings)

    async def follow(self, reload_file: str) -> None:
        """Reload whenever a file changes or `reload_file` is written; runs until cancelled."""
        await watch([*self._files, reload_file], self.reload, [*self._seen, stamp(reload_file)])

    def reload(self) -> None:
        """Read the files again. Connections keep what they began with; new ones get the new certificate."""
        try:
            loaded = _load(self._settings)
            loaded.require_valid(time.time())
        except Exception as error:  # whatever somebody puts there, the next change is to be seen
            self._not_taken(error)
            return
        self.context.current, self.not_after, self.healthy = loaded.context, loaded.not_after, True
        log.info("certificate loaded", not_after=_iso(loaded.not_after))

    def _not_taken(self, error: Exception) -> None:
        self.healthy = False
        why = {"problems": error.problems} if isinstance(error, ConfigError) else {"exc_info": error}
        log.error("certificate not loaded, the one before stays in use", **why)

    def names_allowed(self, names: Iterable[str]) -> bool:
        """Whether a client whose verified certificate bears `names` may come in."""
        return self._client_names is None or not self._client_names.isdisjoint(map(_folded, names))


class _LiveContext(ssl.SSLContext):
    """Begins every connection with the context that is current, so that certificate, key and authorities change at
    once and wholly: loading them into a context in use could leave it with half of a pair, and removes no authority."""

    current: ssl.SSLContext

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        return self.current.wrap_bio(*args, **options)


def names_of(certificate: dict[str, Any] | None) -> list[str]:
    """The subject alternative names of a peer's certificate, as the ssl module gives it."""
    kinds = ("DNS", "email", "URI", "IP Address")
    return [value.strip() for kind, value in (certificate or {}).get("subjectAltName", ()) if kind in kinds]


def _folded(name: str) -> str:
    """One spelling of a name: host names and mail addresses in lower case, IP addresses as Python writes them."""
    if "://" in name:
        return name
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.lower()


# Reading the files


@dataclass(frozen=True)
class _Loaded:
    path: str
    context: ssl.SSLContext
    not_before: float
    not_after: float

    def require_valid(self, now: float) -> None:
        if now > self.not_after:
            raise ConfigError(f"--ssl-certfile: {self.path} expired at {_iso(self.not_after)}; renew it")
        if now < self.not_before:
            raise ConfigError(f"--ssl-certfile: {self.path} is not valid before {_iso(self.not_before)}; "
                              "is the clock right?")


def _load(settings: ServeSettings) -> _Loaded:
    """Raises ConfigError with a sentence for each file that cannot be used."""
    certfile, keyfile = settings.ssl_certfile, settings.ssl_keyfile
    assert certfile is not None
    assert keyfile is not None
    problems: list[str] = []
    certificate = _read("--ssl-certfile", certfile, problems)
    key = _read("--ssl-keyfile", keyfile, problems)
    _check_key(keyfile, key, problems)
    context = _context(settings, problems)
    not_before = not_after = 0.0
    if certificate:
        try:
            begin = certificate.index(_BEGIN)
            not_before, not_after = validity(ssl.PEM_cert_to_DER_cert(
                certificate[begin:certificate.index(_END, begin) + len(_END)]))
        except (ValueError, IndexError):
            problems.append(f"--ssl-certfile: {certfile} holds no certificate in PEM form")
    if not problems:
        try:
            context.load_cert_chain(certfile, keyfile)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = getattr(error, "reason", None) or str(error)
            problems.append(f"--ssl-keyfile: {keyfile} is not the private key of {certfile}"
                            if reason == "KEY_VALUES_MISMATCH" else
                            f"--ssl-certfile: {certfile} and {keyfile} cannot be used: {reason}")
    if problems:
        raise ConfigError(problems)
    return _Loaded(certfile, context, not_before, not_after)


def _read(flag: str, path: str, problems: list[str]) -> str:
    try:
        return Path(path).read_text("ascii", "replace")
    except OSError as error:
        problems.append(f"{flag}: {path} cannot be read: {error.strerror}")
        return ""


def _check_key(path: str, content: str, problems: list[str]) -> None:
    if not content:
        return
    try:
        mode = os.stat(path).st_mode & 0o777
    except OSError as error:  # it went since it was read
        problems.append(f"--ssl-keyfile: {path} cannot be read: {error.strerror}")
        return
    if mode & 0o077 & ~KEY_MODE:
        problems.append(f"--ssl-keyfile: {path} is open to others (mode {mode:04o}); chmod it to {KEY_MODE:04o} or "
                        "less")
    if "PRIVATE KEY-----" not in content:
        problems.append(f"--ssl-keyfile: {path} holds no private key in PEM form")
    elif "ENCRYPTED" in content:  # OpenSSL would ask the terminal for the passphrase
        problems.append(f"--ssl-keyfile: {path} is encrypted; give a key without passphrase")


def _context(settings: ServeSettings, problems: list[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.set_ciphers(settings.ssl_ciphers or CIPHERS)
    except ssl.SSLError:
        problems.append(f"--ssl-ciphers: {settings.ssl_ciphers!r} names no cipher that OpenSSL has")
    if settings.ssl_ca_certs is not None and _read("--ssl-ca-certs", settings.ssl_ca_certs, problems):
        try:
            context.load_verify_locations(settings.ssl_ca_certs)
        except ssl.SSLError:
            problems.append(f"--ssl-ca-certs: {settings.ssl_ca_certs} holds no certificate in PEM form")
        except OSError as error:  # it went since it was read
            problems.append(f"--ssl-ca-certs: {settings.ssl_ca_certs} cannot be read: {error.strerror}")
    context.verify_mode = ssl.VerifyMode(settings.ssl_cert_reqs)
    return context


def validity(certificate: bytes) -> tuple[float, float]:
    """notBefore and notAfter of a certificate (DER), in unix seconds: RFC 5280, 4.1. Python's ssl tells them of peers'
    certificates only, not of one's own."""
    (_, signed), *_ = _elements(_elements(certificate)[0][1])
    fields = [content for tag, content in _elements(signed) if tag != _EXPLICIT_VERSION]
    not_before, not_after = _elements(fields[3])  # after serial number, algorithm and issuer
    return _unix(*not_before), _unix(*not_after)


def _elements(der: bytes) -> list[tuple[int, bytes]]:
    """(tag, content) of the elements that lie in `der` one after the other."""
    found, at = [], 0
    while at < len(der):
        tag, length = der[at], der[at + 1]
        at += 2
        if length & 0x80:  # long form: so many bytes hold the length
            size = length & 0x7F
            length = int.from_bytes(der[at:at + size], "big")
            at += size
        found.append((tag, der[at:at + length]))
        at += length
    return found


def _unix(tag: int, content: bytes) -> float:
    text = content.decode("ascii")
    if tag == _UTC_TIME:  # two digits of the year, 1950 to 2049
        text = ("19" if text >= "5" else "20") + text
    return float(calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ")))


def _iso(unix_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix_s))
