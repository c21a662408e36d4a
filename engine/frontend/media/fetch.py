"""Gets an image from a web server that a client named: one GET, within limits, from an address that may be.

The host's name is resolved once, the addresses are judged (`address`), and one of these is connected to, so that no
second answer of a name server can lead elsewhere. A redirect begins anew. Limits hold while bytes arrive. What is
connected to and what is asked for are read off the one parsed URL. Knows no image formats; called by `source`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from urllib.parse import quote, urljoin, urlsplit

import h11

from quire.engine.frontend.media.address import refusal
from quire.engine.frontend.media.errors import BadImageError
from quire.engine.image_options import checked_domains, network_name

# Of a host's name and a port, the addresses.
Resolve = Callable[[str, int], Awaitable[list[str]]]

MAX_REDIRECTS = 3
MAX_URL_CHARS = 8192
_MAX_HEAD_BYTES = 16 * 2**10
_READ_BYTES = 16 * 2**10  # parsed at a time, on the event loop
_MAX_INTERIM_REPLIES = 8  # before the one that counts
# Parsing costs time for each piece: beyond the first of them, pieces hold so many bytes on average.
_PIECES_OF_ANY_SIZE = 1024
_BYTES_A_PIECE = 256
# Their own: a name server that a stranger chose may be slow, and holds up other strangers' names alone.
_RESOLVERS = ThreadPoolExecutor(8, thread_name_prefix="resolve")
_REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = {"http": 80, "https": 443}
_KEPT = "%/:=&?~#+!$,;'@()*[]-._"  # of a path: escaped already, or needs no escape


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart. `host` is in the form that names have on the network."""

    scheme: str
    host: str
    port: int
    path: str  # with the query

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def target_of(url: str) -> Target:
    """Raises BadImageError for what is no plain http or https URL."""
    if len(url) > MAX_URL_CHARS:
        raise BadImageError(f"its URL has {len(url)} characters; at most {MAX_URL_CHARS} are taken")
    if any(c <= " " or c in "\\\x7f" for c in url):  # parsers differ in what they make of these
        raise BadImageError("its URL holds a space, a backslash or a control character; write these as %20 and the "
                            "like")
    try:
        parts = urlsplit(url)
        host, port = network_name(parts.hostname or ""), parts.port
    except (ValueError, UnicodeError):
        raise BadImageError("its URL cannot be read") from None
    if parts.scheme not in _PORTS or not host or "%" in host:
        raise BadImageError("its URL must be http:// or https:// with a host's name")
    if parts.username is not None or parts.password is not None:
        raise BadImageError("its URL holds a user's name or password, which this server does not send")
    path = quote(parts.path or "/", safe=_KEPT) + (f"?{quote(parts.query, safe=_KEPT)}" if parts.query else "")
    return Target(parts.scheme, host, port or _PORTS[parts.scheme], path)


async def resolved(host: str, port: int) -> list[str]:
    """As the system resolves names. Raises OSError."""
    found = await asyncio.get_running_loop().run_in_executor(
        _RESOLVERS, partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM))
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Fetcher:
    """Args:
        timeout_s: for name, connection, redirects and bytes together.
        max_bytes: of a body.
        domains: hosts that may be fetched from, none else; they may be in a private network. None: any public host.
        resolve, tls: for tests.
    """

    def __init__(self, timeout_s: float, max_bytes: int, domains: Collection[str] | None = None,
                 resolve: Resolve = resolved, tls: ssl.SSLContext | None = None) -> None:
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._domains = None if domains is None else checked_domains(domains)
        self._resolve = resolve
        self._tls = tls

    async def fetch(self, url: str) -> bytes:
        """Raises BadImageError: says why, and nothing of what answered."""
        try:
            return await asyncio.wait_for(self._fetch(url), self._timeout_s)
        except asyncio.TimeoutError:
            raise BadImageError(f"it did not arrive within {self._timeout_s:g} s (--image-fetch-timeout)") from None

    async def _fetch(self, url: str) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            target = target_of(url)
            body, location = await self._get(target)
            if location is None:
                return body
            try:
                url = urljoin(target.url, location)
            except ValueError:
                raise BadImageError("its server redirects to a URL that cannot be read") from None
            if target.scheme == "https" and not url.lower().startswith("https:"):
                raise BadImageError("its server redirects from https to an address without it")
        raise BadImageError(f"its server redirects more than {MAX_REDIRECTS} times")

    async def _get(self, target: Target) -> tuple[bytes, str | None]:
        """The body, or where it is to be found."""
        reader, writer = await self._connected(target, await self._addresses(target))
        try:
            return await _Exchange(target, self._max_bytes, reader, writer).run()
        except (OSError, h11.ProtocolError, ValueError):  # ValueError: a length of thousands of digits
            raise BadImageError("its server broke off, or does not speak HTTP") from None
        finally:
            writer.transport.abort()

    async def _addresses(self, target: Target) -> list[str]:
        """Those of the host, each of which may be connected to."""
        is_named = self._domains is not None and target.host in self._domains
        if self._domains is not None and not is_named:
            raise BadImageError(f"its host {target.host!r} is not one of --allowed-media-domains")
        try:
            found = await self._resolve(target.host, target.port)
        except (OSError, UnicodeError):
            found = []
        if not found:
            raise BadImageError(f"its host {target.host!r} cannot be found")
        for address in found:
            if why := refusal(address, private_too=is_named):
                is_hopeless = is_named or refusal(address, private_too=True)
                hint = "" if is_hopeless else "; whoever runs the server can allow it by --allowed-media-domains"
                raise BadImageError(f"the address of its host {target.host!r} is not fetched from: {why}{hint}")
        return found

    async def _connected(self, target: Target, addresses: list[str]
                         ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        tls: dict[str, object] = {}
        if target.scheme == "https":
            if self._tls is None:
                self._tls = ssl.create_default_context()
            tls = {"ssl": self._tls, "server_hostname": target.host}
        for address in addresses:
            try:
                return await asyncio.open_connection(address, target.port, **tls)  # type: ignore[arg-type]
            except ssl.SSLError:
                raise BadImageError(f"the certificate of its host {target.host!r} is not valid") from None
            except OSError:
                continue
        raise BadImageError(f"its host {target.host!r} cannot be connected to")


class _Exchange:
    """One request and its reply."""

    def __init__(self, target: Target, max_bytes: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
                 ) -> None:
        self._target = target
        self._max_bytes = max_bytes
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)

    async def run(self) -> tuple[bytes, str | None]:
        target = self._target
        request = h11.Request(method="GET", target=target.path, headers=[
            ("host", target.authority), ("user-agent", "quire"), ("accept", "image/*"),
            ("accept-encoding", "identity"), ("connection", "close")])
        self._writer.write((self._http.send(request) or b"") + (self._http.send(h11.EndOfMessage()) or b""))
        head = await self._head()
        if not isinstance(head, h11.Response):
            raise BadImageError("its server answers nothing")
        headers = {name: value.decode("latin-1") for name, value in head.headers}
        if head.status_code in _REDIRECTS and b"location" in headers:
            return b"", headers[b"location"]
        self._check(head.status_code, headers)
        return await self._body(), None

    async def _head(self) -> object:
        for _ in range(_MAX_INTERIM_REPLIES + 1):
            if not isinstance(event := await self._next_event(), h11.InformationalResponse):
                return event
        raise BadImageError("its server announces a reply again and again")

    def _check(self, status: int, headers: dict[bytes, str]) -> None:
        if status != 200:
            raise BadImageError(f"its server answers with status {status}")
        if headers.get(b"content-encoding", "identity").lower() != "identity":
            raise BadImageError("its server compresses it once more, unasked")
        if int(headers.get(b"content-length", 0)) > self._max_bytes:  # h11 lets only digits pass
            raise self._too_long()

    async def _body(self) -> bytes:
        found = bytearray()
        num_pieces = 0
        while not isinstance(event := await self._next_event(), h11.EndOfMessage):
            if isinstance(event, h11.ConnectionClosed):
                raise BadImageError("its server broke off")
            if isinstance(event, h11.Data):
                found += event.data
                num_pieces += 1
                if len(found) > self._max_bytes:
                    raise self._too_long()
                if num_pieces > _PIECES_OF_ANY_SIZE + len(found) // _BYTES_A_PIECE:
                    raise BadImageError("its server sends it in crumbs")
        return bytes(found)

    def _too_long(self) -> BadImageError:
        return BadImageError(f"it has more than {self._max_bytes} bytes (--max-image-bytes)")

    async def _next_event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            await asyncio.sleep(0)  # a read that need not wait would let nobody else in
            self._http.receive_data(await self._reader.read(_READ_BYTES))
        return event
